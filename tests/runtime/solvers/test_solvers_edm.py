"""Solvers on an EDM process against diffusers' schedulers, algorithms 1 and 2 of Karras et al. 2022, and known data."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler
from schedulers import STEPS, denoise, far, follow, in_float64, some
from tolerances import LIMITS

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import ON_EDM, exact, table
from mmgen.runtime.solvers.schedules import edm_levels
from mmgen.runtime.storage.process import EDM, Flow

PREDICTIONS = {"preconditioned": "epsilon", "v": "v_prediction"}  # ours: theirs
LEVELS = {"sigma_min": (0.002, 0.05), "sigma_max": (80.0, 10.0), "sigma_data": (0.5, 1.0)}


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pair(kind, prediction, schedule, config, **levels):
    """Our process and their scheduler."""
    scheduler = kind(prediction_type=PREDICTIONS[prediction], sigma_schedule=schedule, **config, **levels)
    told = {"conditioned_on": "log_sigma", "timestep_scale": 0.25}
    return EDM(prediction=prediction, schedule=schedule, **told, **levels), scheduler


def far_from(scheduler, rows, **step):
    """The largest relative RMS between both, from the same state: theirs begins with a little more noise."""
    begun = replace(rows, initial_scale=float(scheduler.init_noise_sigma))
    return follow(scheduler, begun, np.float64, **step)


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_euler(double, prediction, schedule):
    for c in some(18, **LEVELS, rho=(7.0, 5.0), final_sigmas_type=("zero", "sigma_min")):
        steps, final = c.pop("steps"), {"final_sigmas_type": c.pop("final_sigmas_type")}
        if steps == 1 and (schedule == "exponential" or final["final_sigmas_type"] == "sigma_min"):
            continue  # theirs starts at sigma_min, or ends where it starts
        process, scheduler = pair(EDMEulerScheduler, prediction, schedule, final, **c)
        scheduler.set_timesteps(steps)
        rows = exact("euler", process, steps, options=final)
        assert far_from(scheduler, rows) < LIMITS["solver, float64"], c


DPM = {
    "solver_type": ("midpoint", "heun"),
    "lower_order_final": (True, False),
    "euler_at_final": (True, False),
    "final_sigmas_type": ("zero", "sigma_min"),
}


@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "dpmpp-sde-2m"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dpm(double, prediction, solver):
    orders = (3,) if solver == "dpmpp-3m" else (1, 2)
    algorithm = {"algorithm_type": "sde-dpmsolver++" if solver == "dpmpp-sde-2m" else "dpmsolver++"}
    for c in some(18, **LEVELS, **DPM, solver_order=orders, schedule=("karras", "exponential")):
        steps, schedule, options = c.pop("steps"), c.pop("schedule"), {name: c.pop(name) for name in DPM}
        order = c.pop("solver_order")
        if options["final_sigmas_type"] == "sigma_min":  # the last step has no length, and theirs divides by it
            options["euler_at_final"] = True
            if solver == "dpmpp-sde-2m":
                continue
        if steps == 1 and schedule == "exponential":  # theirs starts at sigma_min
            continue
        process, scheduler = pair(
            EDMDPMSolverMultistepScheduler, prediction, schedule, {**algorithm, **options, "solver_order": order}, **c
        )
        scheduler.set_timesteps(steps)
        if solver != "dpmpp-3m":
            options["solver_order"] = order
        rows = exact(solver, process, steps, options=options)
        assert far_from(scheduler, rows) < LIMITS["solver, float64"], (c, options)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_consistency(double, clip):
    told = {"conditioned_on": "log_sigma", "timestep_scale": 250.0}
    for c in some(9, **LEVELS, rho=(7.0, 5.0)):
        steps = c.pop("steps")
        scheduler = CMStochasticIterativeScheduler(3 * steps + 1, clip_denoised=clip is not None, **c)
        scheduler.set_timesteps(timesteps=[3 * i for i in reversed(range(steps))])
        rows = exact("consistency", EDM(prediction="consistency", clip=clip, **told, **c), steps)
        assert rows.initial_scale == scheduler.init_noise_sigma == c["sigma_max"]
        assert far_from(scheduler, rows) < LIMITS["solver, float64"], c


def algorithm_2(denoiser, levels, start, noises, *, churn=0.0, least=0.0, most=np.inf, width=1.0, second=True):
    """Karras et al. 2022, algorithm 2, line by line; ``second`` are its lines 9 to 11."""
    x, count = start, len(levels) - 1
    for i in range(count):
        t, following = levels[i], levels[i + 1]
        gamma = min(churn / count, np.sqrt(2) - 1) if least <= t <= most else 0.0
        hat = t + gamma * t
        x_hat = x + np.sqrt(hat**2 - t**2) * width * noises[i]
        d = (x_hat - denoiser(x_hat, hat)) / hat
        x = x_hat + (following - hat) * d
        if second and following != 0:
            again = (x - denoiser(x, following)) / following
            x = x_hat + (following - hat) * (d / 2 + again / 2)
    return x


def denoised(x, sigma):
    return denoise(x / np.hypot(1, sigma), np.log(sigma))


@pytest.mark.parametrize("churn", [{}, {"s_churn": 40.0}, {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 50.0}])
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_euler_and_heun_with_churn(solver, churn):
    given = {"churn": churn.get("s_churn", 0.0), "least": churn.get("s_tmin", 0.0), "most": churn.get("s_tmax", np.inf)}
    width = 1.007 if churn else 1.0
    rng = np.random.default_rng(1)
    for steps in STEPS[:6]:
        levels = edm_levels(EDM(), steps, "schedule")
        start, *noises = rng.standard_normal((steps + 1, 2, 5))
        rows = exact(solver, EDM(), steps, options={**churn, "s_noise": width} if churn else {})
        of_row = np.zeros((len(rows), 2, 5))
        of_row[[i for i in range(len(rows)) if rows.stochastic[i]]] = [
            noise for noise, level in zip(noises[1:], levels[1:-1], strict=True)
            if given["churn"] and given["least"] <= level <= given["most"]
        ] or np.zeros((0, 2, 5))  # fmt: skip
        first = np.zeros_like(start) if not given["churn"] else noises[0]
        hat = rows.timestep[0]
        begun = start * levels[0] + np.sqrt(hat**2 - levels[0] ** 2) * width * first  # as one noise in ours
        assert rows.initial_scale == pytest.approx(np.hypot(levels[0], np.sqrt(hat**2 - levels[0] ** 2) * width))
        wanted = algorithm_2(denoised, levels, start * levels[0], [first, *noises[1:]], width=width,
                             second=solver == "heun", **given)  # fmt: skip
        *_, state = run(rows, denoised, begun / rows.initial_scale, noises=of_row)
        assert far(state[0], wanted) < LIMITS["solver, float64"], steps


def test_predictions_are_ways_to_say_one_thing():
    """A denoiser that knows x0 says it in each of them, and every table takes it for the same."""
    x0, noise = 0.3, 0.7
    said, scales = {}, {}
    for prediction in ("sample", "epsilon", "preconditioned", "v"):
        rows = exact("lms", EDM(prediction=prediction), 4)
        sigma = rows.level[:, 1]
        said[prediction] = (x0 - rows.prediction[:, 0] * (x0 + sigma * noise)) / rows.prediction[:, 1]
        scales[prediction] = rows.input_scale
    angle = np.arctan2(sigma, 0.5)  # of data 0.5 wide and noise
    f = np.sin(angle) * x0 / 0.5 - np.cos(angle) * noise
    np.testing.assert_array_equal(said["sample"], x0)
    np.testing.assert_allclose(said["epsilon"], noise, rtol=1e-10)
    np.testing.assert_allclose(said["preconditioned"], f, rtol=1e-9)
    np.testing.assert_allclose(said["v"], -f, rtol=1e-9)
    assert (scales["sample"] == 1).all() and (scales["epsilon"] == 1).all()
    np.testing.assert_allclose(scales["preconditioned"], 1 / np.hypot(sigma, 0.5))
    np.testing.assert_array_equal(scales["v"], scales["preconditioned"])


def test_what_the_denoiser_is_told():
    assert table("euler", EDM(), 3).timestep[[0, -1]] == pytest.approx([80, 0.002])
    log = EDM(conditioned_on="log_sigma", timestep_scale=0.25)
    assert table("euler", log, 3).timestep[[0, -1]] == pytest.approx([np.log(80) / 4, np.log(0.002) / 4])


def test_intervals_of_guidance_are_in_sigma_and_the_start_is_the_most_noise():
    for solver in ON_EDM:
        rows = table(solver, EDM(), 4)
        assert rows.noise_to_data[0] == rows.initial_scale == pytest.approx(80)
        assert (np.diff(rows.noise_to_data) <= 0).all()
        assert rows.next_level[-1].tolist() == [1, 0]


def test_a_consistency_model_visits_no_level_twice():
    assert table("consistency", EDM(), 1).timestep == pytest.approx([80])
    assert table("consistency", EDM(schedule="exponential"), 2).timestep == pytest.approx([80, 0.4])  # sqrt(80 * 0.002)


MEAN, SPREAD = 0.5, 0.5  # data ~ N(MEAN, SPREAD^2)
X = np.linspace(-2.0, 2.0, 9)[None]


def expected(x, sigma):
    """E[x0 | x] for x = x0 + sigma noise."""
    return MEAN + SPREAD**2 / (SPREAD**2 + sigma**2) * (x - MEAN)


def order_of(error, steps=(50, 100, 200, 400)):
    return -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp-2m", 2), ("dpmpp-3m", 2), ("lms", 4)]
)
def test_order_of_convergence(solver, order):
    """Along the probability flow, which takes quantiles to quantiles; from where the solver has its history."""
    process = EDM(sigma_max=10.0, sigma_min=0.05)

    def error(steps):
        rows = exact(solver, process, steps)
        levels, stages = edm_levels(process, steps, "schedule"), 2 if solver == "heun" else 1
        truth = [MEAN + np.hypot(SPREAD, s) / np.hypot(SPREAD, levels[0]) * (X - MEAN) for s in levels]
        for row, state in enumerate(run(rows, expected, X / rows.initial_scale), 1):
            step, left = divmod(row, stages)
            if left == 0 and step <= steps // 10:
                state[0] = truth[step]
            if left == 0 and step == steps * 9 // 10:
                return np.abs(state[0] - truth[step]).max()
        raise AssertionError("too few rows")

    assert order_of(error) == pytest.approx(order, abs=LIMITS["order of convergence"])


@pytest.mark.parametrize(
    ("solver", "options"), [("euler-ancestral", {}), ("dpmpp-sde-2m", {}), ("heun", {"s_churn": 60.0})]
)
def test_noise_becomes_the_distribution_of_the_data(solver, options):
    """With a linear denoiser each noise adds to the sample by itself, so that mean and spread follow without chance."""
    rows = exact(solver, EDM(), 400, options=options)
    ones = np.eye(len(rows) + 2)  # nothing, the start, each row's noise
    *_, state = run(rows, expected, ones[1], noises=ones[2:])
    mean, parts = state[0][0], state[0][1:] - state[0][0]
    assert abs(mean - MEAN) + abs(np.linalg.norm(parts) - SPREAD) < LIMITS["spread of the data"]


@pytest.mark.parametrize("solver", ON_EDM)
def test_any_number_of_steps_and_any_spacing(solver):
    for sigmas in ("schedule", "karras", "exponential", "beta"):
        for steps in (1, 2, 40, 1000):
            rows = table(solver, EDM(), steps, sigmas=sigmas)
            assert len(rows) == (2 * steps - 1 if solver == "heun" else steps)
            assert rows.transition.dtype == rows.timestep.dtype == np.float32


@pytest.mark.parametrize(
    ("process", "message"),
    [
        (EDM(sigma_min=0.0), "sigmas of the process, got 0 to 80, wanted sigma_min above 0 and below sigma_max"),
        (EDM(sigma_max=0.001), "got 0.002 to 0.001"),
        (EDM(sigma_data=0.0), "sigma_data of the process, got 0.0, wanted more than 0"),
        (EDM(rho=-7.0), "rho of the process, got -7.0"),
        (EDM(timestep_scale=float("nan")), "timestep_scale of the process, got nan"),
    ],
)
def test_a_process_that_has_no_levels(process, message):
    for solver in ON_EDM:
        with pytest.raises(MmgenError, match=message):
            table(solver, process, 4)


def test_what_doesnt_fit():
    with pytest.raises(MmgenError, match="solver for an edm process, got 'ddim', wanted 'consistency' or 'euler'"):
        table("ddim", EDM(), 4)
    with pytest.raises(MmgenError, match="solver for a flow process, got 'consistency'"):
        table("consistency", Flow(), 4)
    for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
        with pytest.raises(MmgenError, match=f"option '{name}' of the solver, got -1.0, wanted at least 0"):
            table("heun", EDM(), 4, options={name: -1})
