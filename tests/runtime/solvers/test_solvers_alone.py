"""Solvers on their own: denoisers in closed form, extreme numbers of steps, requests that can't be met."""

from dataclasses import replace

import numpy as np
import pytest
from schedulers import denoise, far
from tolerances import LIMITS

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import ALONG_FLOW, ON_DIFFUSION, SOLVERS, exact, solvers_for, table
from mmgen.runtime.solvers.schedules import alphas_cumprod, euler_levels, flow_levels, flow_timesteps, multistep_levels
from mmgen.runtime.solvers.transitions import twice
from mmgen.runtime.storage.process import Diffusion, Flow

SHAPE = (2, 3, 5)

every_schedule = pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
every_spacing = pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
every_prediction = pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])


def ends_at(rows, denoiser, start):
    *_, state = run(rows, denoiser, start)
    return state[0]


MULTISTEP = ("dpmpp-2m", "dpmpp-3m", "dpmpp-sde-2m", "unipc")


def rows_of(solver, steps):
    """How often the denoiser is asked."""
    match solver:
        case "heun" | "flow-heun":
            return 2 * steps - 1
        case "plms":
            return steps + (steps > 1)
        case _:
            return steps


def noises_for(rows, shape=SHAPE):
    return np.random.default_rng(4).standard_normal((len(rows), *shape)).astype(np.float32)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler", "euler-ancestral", "heun", "lms", *MULTISTEP])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_a_single_datum_is_hit_in_any_number_of_steps(solver, steps):
    datum = np.linspace(-1, 1, 7)[None]
    rows = table(solver, Diffusion(prediction="sample", spacing="trailing"), steps)
    start = np.random.default_rng(2).standard_normal((1, 7))
    *_, state = run(rows, lambda x, t: datum, start, noises=noises_for(rows, (1, 7)))
    limit = LIMITS["solver, float32, extrapolating" if solver == "lms" else "solver, float32"]
    assert np.abs(state[0] - datum).max() < limit


MEAN, SPREAD = 0.5, 0.5  # data ~ N(MEAN, SPREAD^2)


def expected_datum(x, alpha, sigma):
    """E[x0 | x] for x = alpha x0 + sigma noise."""
    return MEAN + alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2) * (x - alpha * MEAN)


def carried(x, alpha, sigma, alpha_end, sigma_end):
    """The probability flow ODE takes quantiles to quantiles."""
    width, width_end = np.hypot(alpha * SPREAD, sigma), np.hypot(alpha_end * SPREAD, sigma_end)
    return alpha_end * MEAN + width_end / width * (x - alpha * MEAN)


def order_of(error, steps=(100, 200, 400, 800)):
    return -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]


X = np.linspace(-2.0, 2.0, 9)[None]


def error_in_the_middle(rows, denoiser, truth, stages=1):
    """Error at nine tenths of the steps; on the first tenth, where orders are still low, the solver is kept to truth.

    ``truth`` is what the state is after each step, N + 1 of them, a step being ``stages`` rows.
    """
    steps = len(truth) - 1
    for row, state in enumerate(run(rows, denoiser, truth[0] / rows.initial_scale), 1):
        step, left = divmod(row, stages)
        if left == 0 and step <= steps // 10:
            state[0] = truth[step]
        if left == 0 and step == steps * 9 // 10:
            return np.abs(state[0] - truth[step]).max()
    raise AssertionError("too few rows")


FLOW_ORDERS = [
    ("flow-euler", {}, 1),
    ("flow-heun", {}, 2),
    ("dpmpp-2m", {"solver_order": 1}, 1),
    ("dpmpp-2m", {}, 2),
    ("dpmpp-2m", {"solver_type": "heun"}, 2),
    ("dpmpp-3m", {}, 2),  # see data_prediction
    ("unipc", {"solver_order": 1}, 2),  # the corrector adds one
    ("unipc", {"solver_order": 2}, 3),
    ("unipc", {"solver_order": 2, "solver_type": "bh1"}, 3),
    ("unipc", {"solver_order": 3}, 4),
    ("unipc", {"solver_order": 3, "disable_corrector": ",".join(map(str, range(800)))}, 3),
    ("lms", {"order": 1}, 1),
    ("lms", {"order": 2}, 2),
    ("lms", {"order": 3}, 3),
    ("lms", {"order": 4}, 4),
]


@pytest.mark.parametrize(("solver", "options", "order"), FLOW_ORDERS)
def test_order_along_a_flow(solver, options, order):
    process = Flow(timestep_scale=1.0)

    def error(steps):
        rows = exact(solver, process, steps, options=options)
        truth = [carried(X, 0.0, 1.0, 1 - s, s) for s in flow_levels(process, steps, "schedule")]
        stages = 2 if solver == "flow-heun" else 1
        return error_in_the_middle(rows, lambda x, s: (x - expected_datum(x, 1 - s, s)) / s, truth, stages)

    assert order_of(error) == pytest.approx(order, abs=LIMITS["order of convergence"])


DIFFUSION_ORDERS = [
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("lms", {"order": 2}, 2),
    ("lms", {}, 4),
    ("dpmpp-2m", {"solver_order": 1}, 1),
    ("dpmpp-2m", {}, 2),
    ("dpmpp-2m", {"solver_type": "heun"}, 2),
    ("dpmpp-3m", {}, 2),  # see data_prediction
    ("unipc", {"solver_order": 1}, 2),
    ("unipc", {"solver_order": 2}, 3),
    ("unipc", {"solver_order": 3}, 4),
    ("unipc", {"solver_order": 3, "solver_type": "bh1"}, 4),
    ("unipc", {"solver_order": 2, "predict_x0": False}, 3),
]
IN_SIGMA = ("euler", "heun", "lms")


@pytest.mark.parametrize(("solver", "options", "order"), DIFFUSION_ORDERS)
def test_order_on_a_diffusion(solver, options, order):
    process = Diffusion(prediction="sample", spacing="linspace")

    def error(steps):
        levels_of = euler_levels if solver in IN_SIGMA else multistep_levels
        levels, _ = levels_of(process, steps, "karras", "zero")
        alpha = 1 / np.sqrt(1 + levels**2)
        sigma = alpha * levels
        truth = [carried(X, alpha[0], sigma[0], a, s) for a, s in zip(alpha, sigma, strict=True)]
        told = list(zip(alpha, sigma, strict=True))
        stages = 2 if solver == "heun" else 1
        row = iter(twice(np.array(told)) if stages == 2 else told)
        if solver in IN_SIGMA:
            truth = [x / a for x, a in zip(truth, alpha, strict=True)]
        rows = exact(solver, process, steps, sigmas="karras", options=options)
        return error_in_the_middle(rows, lambda x, t: expected_datum(x, *next(row)), truth, stages)

    assert order_of(error) == pytest.approx(order, abs=LIMITS["order of convergence"])


STOCHASTIC = [
    ("ddpm", {}, 0.85),
    ("ddpm", {"variance_type": "fixed_large"}, 0.85),
    ("ddim", {"eta": 1.0}, 0.85),
    ("ddim", {"eta": 0.4}, 0.75),  # the start's own error stays
    ("euler-ancestral", {}, 0.85),
    ("dpmpp-sde-2m", {"solver_order": 1}, 0.85),
    ("dpmpp-sde-2m", {}, 1.5),
]


@pytest.mark.parametrize(("solver", "options", "at_least"), STOCHASTIC)
def test_noise_becomes_the_distribution_of_the_data(solver, options, at_least):
    """With a linear denoiser each noise adds to the sample by itself, so that mean and spread follow without chance."""
    betas = {"train_timesteps": 4000, "beta_start": 2.5e-5, "beta_end": 0.005}
    process = Diffusion(**betas, prediction="sample", spacing="trailing")
    shares = alphas_cumprod(process)

    def denoiser(x, t):
        a = shares[int(t)]
        return expected_datum(x, np.sqrt(a), np.sqrt(1 - a))

    def error(steps):
        rows = exact(solver, process, steps, options=options)
        ones = np.eye(len(rows) + 2)  # nothing, the start, each row's noise
        *_, state = run(rows, denoiser, ones[1], noises=ones[2:])
        mean, parts = state[0][0], state[0][1:] - state[0][0]
        return abs(mean - MEAN) + abs(np.linalg.norm(parts) - SPREAD)

    assert error(800) < LIMITS["spread of the data"]
    assert order_of(error, (100, 200, 400, 800)) > at_least


def test_first_order_solvers_are_one():
    """DDIM, Euler in sigma and first-order DPM-Solver++ take the same steps over the same levels."""
    process = Diffusion(spacing="trailing")  # 1000 / 20 is whole, so that DDIM's steps meet
    ddim = list(run(exact("ddim", process, 20), denoise, X))
    dpm = list(run(exact("dpmpp-2m", process, 20, options={"solver_order": 1}), denoise, X))
    rows = exact("euler", process, 20)
    scales = np.append(rows.input_scale[1:], 1.0)
    start = X / (rows.initial_scale * rows.input_scale[0])  # Euler's noise is a little larger
    euler = list(run(rows, denoise, start))
    for i in range(20):
        assert far(ddim[i][0], dpm[i][0]) < LIMITS["solver, float64"]
        assert far(euler[i][0] * scales[i], ddim[i][0]) < LIMITS["solver, float64"]


def test_stochastic_first_order_solvers_are_one():
    """Ancestral sampling is one thing: DDPM, DDIM with eta 1, Euler with fresh noise, first-order SDE-DPM-Solver++."""
    process = Diffusion(spacing="trailing")
    start, noises = noises_for([0])[0].astype(np.float64), noises_for(range(20)).astype(np.float64)
    ddpm, ddim, sde = (
        list(run(exact(solver, process, 20, options=options), denoise, start, noises=noises))
        for solver, options in (("ddpm", {}), ("ddim", {"eta": 1.0}), ("dpmpp-sde-2m", {"solver_order": 1}))
    )
    rows = exact("euler-ancestral", process, 20)
    scales = np.append(rows.input_scale[1:], 1.0)
    larger = rows.initial_scale * rows.input_scale[0]
    euler = list(run(rows, denoise, start / larger, noises=noises))
    for i in range(20):
        assert far(ddim[i][0], ddpm[i][0]) < LIMITS["solver, float64"]
        assert far(sde[i][0], ddpm[i][0]) < LIMITS["solver, float64"]
        assert far(euler[i][0] * scales[i], ddpm[i][0]) < LIMITS["solver, float64"]


def test_what_each_row_remembers():
    """The three outputs before, where order 3 or 4 asks for them."""
    for solver, options in (("lms", {}), ("unipc", {"solver_order": 3})):
        for process in (Diffusion(), Flow()):
            transition = exact(solver, process, 9, options=options).transition[5]
            assert (transition[[2, 3], [1, 2]] == 1).all() and transition[1].any() and transition[0, 1:4].all()


# What can be asked for, and what can't.


@every_spacing
@every_schedule
@pytest.mark.parametrize("solver", ON_DIFFUSION)
@pytest.mark.parametrize("steps", [1, 2, 61, 999, 1000])
def test_extreme_numbers_of_steps_are_finite(solver, schedule, spacing, steps):
    """61 is where diffusers' trailing spacing goes one step too far."""
    process = Diffusion(spacing=spacing, beta_schedule=schedule)
    if solver in MULTISTEP and spacing == "leading" and steps == 1000:
        with pytest.raises(MmgenError, match="at most 999"):
            table(solver, process, steps)
        return
    rows = table(solver, process, steps)
    assert len(rows) == rows_of(solver, steps)
    assert rows.transition.dtype == rows.timestep.dtype == rows.prediction.dtype == np.float32
    assert rows.timestep.min() >= 0 and rows.timestep.max() <= 999
    assert (np.diff(rows.timestep) <= 0).all()
    if steps < 999:
        *_, state = run(rows, denoise, noises_for([0])[0], noises=noises_for(rows))
        assert np.isfinite(state[0]).all()


@pytest.mark.parametrize("solver", ON_DIFFUSION)
@every_prediction
def test_zero_terminal_snr_is_finite(solver, prediction):
    process = Diffusion(spacing="trailing", zero_terminal_snr=True, prediction=prediction)
    if solver in ("ddpm", "ddim", "plms") and prediction == "epsilon":
        with pytest.raises(MmgenError, match=f"'{solver}' starts at pure noise .* 'epsilon' says nothing of x0"):
            table(solver, process, 10)
        process = replace(process, spacing="leading")
    for steps in (1, 2, 10, 999):
        assert np.isfinite(table(solver, process, steps).transition).all()


@pytest.mark.parametrize("process", [Diffusion(), Flow()])
def test_solvers_fit_one_process_or_both(process):
    for solver in SOLVERS:
        if solver in solvers_for(process):
            assert len(table(solver, process, 4)) == rows_of(solver, 4)
        else:
            with pytest.raises(MmgenError, match=f"solver for a {process.kind} process"):
                table(solver, process, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddmi", Diffusion(), 4), "solver, got 'ddmi', wanted 'ddpm' or 'ddim'"),
        (("ddim", Diffusion(), 0), "steps, got 0, wanted a whole number, at least 1"),
        (("ddim", Diffusion(), 2.0), "steps, got 2.0"),
        (("flow-euler", Flow(), True), "steps, got True"),
        (("ddim", Diffusion(), 1001), "steps, got 1001, wanted at most 1000"),
        (("euler", Diffusion(steps_offset=1), 1000), "go from timestep 1000 to 1, wanted at most 999"),
        (("ddim", Diffusion(betas=(0.1, 0.2)), 2), "explicit betas, got 2 values"),
        (("ddim", Diffusion(train_timesteps=2, betas=(0.1, 1.5)), 2), "every beta between 0 and 1"),
        (("ddim", Diffusion(beta_start=0.0), 2), "every beta between 0 and 1"),
        (("euler", Diffusion(train_timesteps=1, zero_terminal_snr=True), 1), "zero_terminal_snr"),
        (("dpmpp-2m", Diffusion(train_timesteps=0), 1), "train_timesteps, got 0"),
        (("ddim", Diffusion(steps_offset=-1), 5), "to -1, wanted"),
        (("flow-euler", Flow(train_timesteps=0), 1), "train_timesteps, got 0"),
        (("flow-euler", Flow(shift=0.0), 1), "shift of the flow, got 0.0"),
        (("flow-euler", Flow(terminal=1.0), 1), "terminal of the flow, got 1.0"),
        (("dpmpp-2m", Flow(train_timesteps=1, schedule="dpm"), 1), "train_timesteps of the flow, got 1"),
    ],
)
def test_impossible_runs(arguments, message):
    with pytest.raises(MmgenError, match=message):
        table(*arguments)


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("ddim", {"order": 2}, "option 'order' of solver 'ddim', wanted 'eta'"),
        ("ddpm", {"variance_type": "learned"}, "got 'learned', wanted 'fixed_small' or"),
        ("heun", {"order": 2}, "option 'order' of solver 'heun', wanted no options"),
        ("dpmpp-3m", {"solver_order": 2}, "option 'solver_order' of solver 'dpmpp-3m', wanted 'solver_type' or"),
        ("unipc", {"disable_corrector": 0}, "got 0, wanted text"),
        ("unipc", {"disable_corrector": "first"}, "got 'first', wanted whole numbers"),
        ("lms", {"order": 5}, "got 5, wanted 1 or 2 or 3 or 4"),
        ("ddim", {"eta": 1.5}, "option 'eta' of solver 'ddim', got 1.5, wanted 0 to 1"),
        ("ddim", {"eta": float("nan")}, "wanted 0 to 1"),
        ("ddim", {"eta": "high"}, "wanted a number"),
        ("ddim", {"eta": True}, "wanted a number"),
        ("dpmpp-2m", {"solver_order": 3}, "got 3, wanted 1 or 2"),
        ("dpmpp-2m", {"solver_order": True}, "got True, wanted 1 or 2"),
        ("dpmpp-2m", {"solver_type": "bh2"}, "got 'bh2', wanted 'midpoint' or 'heun'"),
        ("dpmpp-2m", {"lower_order_final": 1}, "got 1, wanted True or False"),
    ],
)
def test_wrong_options(solver, options, message):
    with pytest.raises(MmgenError, match=message):
        table(solver, Diffusion(), 4, options=options)


def test_wrong_sigmas():
    with pytest.raises(MmgenError, match="sigmas, got 'lu', wanted 'schedule' or 'karras' or 'exponential' or 'beta'"):
        table("euler", Diffusion(), 4, sigmas="lu")
    for solver in ("ddim", "ddpm", "plms"):
        with pytest.raises(MmgenError, match=f"sigmas with solver '{solver}', got 'karras'"):
            table(solver, Diffusion(), 4, sigmas="karras")


@pytest.mark.parametrize("solver", ALONG_FLOW)
@pytest.mark.parametrize("schedule", ["uniform", "diffusers", "dpm", "unipc"])
def test_extreme_numbers_of_steps_along_a_flow(solver, schedule):
    for steps in (1, 2, 999, 3000):
        rows = table(solver, Flow(schedule=schedule, shift=3.0, terminal=0.02), steps)
        assert len(rows) == rows_of(solver, steps)
        assert rows.timestep.min() > 0 and rows.timestep.max() <= 1000
        assert (np.diff(rows.timestep) <= 0).all()


def test_flow_timesteps_follow_the_process():
    s = np.array([1.0, 0.75, 0.1])
    assert flow_timesteps(Flow(timestep_scale=1.0), s).tolist() == [1.0, 0.75, 0.1]
    assert flow_timesteps(Flow(noise_time=0, timestep_scale=10.0), s).tolist() == [0.0, 2.5, 9.0]
    assert flow_timesteps(Flow(noise_time=0, timestep_scale=10.0, integer_timesteps=True), s).tolist() == [0, 2, 9]


def test_a_stochastic_table_needs_noises():
    rows = table("ddim", Diffusion(), 3, options={"eta": 1.0})
    assert rows.stochastic.tolist() == [True, True, False]  # the last one ends where there is no noise
    with pytest.raises(ValueError, match="noises"):
        next(run(rows, denoise, X))
