"""Solvers on their own: denoisers in closed form, extreme numbers of steps, requests that can't be met."""

import numpy as np
import pytest
from schedulers import denoise, far
from tolerances import LIMITS

from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Diffusion, Flow
from mmgen.runtime.reference import run
from mmgen.runtime.schedules import flow_timesteps, multistep_levels
from mmgen.runtime.solvers import SOLVERS, exact, solvers_for, table

SHAPE = (2, 3, 5)

every_schedule = pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
every_spacing = pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
every_prediction = pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])


def ends_at(rows, denoiser, start):
    *_, state = run(rows, denoiser, start)
    return state[0]


@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp-2m"])
@pytest.mark.parametrize("steps", [1, 2, 5, 40])
def test_a_single_datum_is_hit_in_any_number_of_steps(solver, steps):
    datum = np.linspace(-1, 1, 7)[None]
    process = Diffusion(prediction="sample", spacing="trailing")
    found = ends_at(table(solver, process, steps), lambda x, t: datum, np.random.default_rng(2).standard_normal((1, 7)))
    assert np.abs(found - datum).max() < LIMITS["solver, float32"]


MEAN, SPREAD = 0.5, 0.2  # data ~ N(MEAN, SPREAD^2)


def expected_datum(x, alpha, sigma):
    """E[x0 | x] for x = alpha x0 + sigma noise."""
    return MEAN + alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2) * (x - alpha * MEAN)


def carried(x, alpha, sigma, alpha_end, sigma_end):
    """The probability flow ODE takes quantiles to quantiles."""
    width, width_end = np.hypot(alpha * SPREAD, sigma), np.hypot(alpha_end * SPREAD, sigma_end)
    return alpha_end * MEAN + width_end / width * (x - alpha * MEAN)


def order_of(error, steps=(40, 80, 160, 320)):
    return -np.polyfit(np.log(steps), np.log([error(n) for n in steps]), 1)[0]


X = np.linspace(-2.0, 2.0, 9)[None]


@pytest.mark.parametrize(("solver", "options"), [("flow-euler", {}), ("dpmpp-2m", {"solver_order": 1})])
def test_first_order_along_a_flow(solver, options):
    process = Flow(timestep_scale=1.0)

    def velocity(x, s):
        return (x - expected_datum(x, 1 - s, s)) / s

    def error(steps):
        end = ends_at(exact(solver, process, steps, options=options), velocity, X)
        return np.abs(end - carried(X, 0.0, 1.0, 1.0, 0.0)).max()

    assert order_of(error) == pytest.approx(1, abs=LIMITS["order of convergence"])


@pytest.mark.parametrize(
    ("solver_type", "solver_order", "order"), [("midpoint", 1, 1), ("midpoint", 2, 2), ("heun", 2, 2)]
)
def test_order_on_a_diffusion(solver_type, solver_order, order):
    process = Diffusion(prediction="sample")
    options = {
        "solver_type": solver_type,
        "solver_order": solver_order,
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
    }

    def error(steps):
        levels, _ = multistep_levels(process, steps, "karras", "sigma_min", -np.inf)
        alpha = 1 / np.sqrt(1 + levels**2)
        sigma = alpha * levels
        row = iter(zip(alpha, sigma, strict=True))
        rows = exact("dpmpp-2m", process, steps, sigmas="karras", options=options)
        end = ends_at(rows, lambda x, t: expected_datum(x, *next(row)), X)  # not told t, which is rounded
        return np.abs(end - carried(X, alpha[0], sigma[0], alpha[-1], sigma[-1])).max()

    assert order_of(error) == pytest.approx(order, abs=LIMITS["order of convergence"])


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


# What can be asked for, and what can't.


@every_spacing
@every_schedule
@pytest.mark.parametrize("solver", ["ddim", "euler", "dpmpp-2m"])
@pytest.mark.parametrize("steps", [1, 2, 61, 500, 999, 1000])
def test_extreme_numbers_of_steps_are_finite(solver, schedule, spacing, steps):
    """61 is where diffusers' trailing spacing goes one step too far."""
    process = Diffusion(spacing=spacing, beta_schedule=schedule)
    if solver == "dpmpp-2m" and spacing == "leading" and steps == 1000:
        with pytest.raises(MmgenError, match="at most 999"):
            table(solver, process, steps)
        return
    rows = table(solver, process, steps)
    assert len(rows) == steps
    assert rows.transition.dtype == rows.timestep.dtype == rows.prediction.dtype == np.float32
    assert rows.timestep.min() >= 0 and rows.timestep.max() <= 999
    assert (np.diff(rows.timestep) <= 0).all()
    end = ends_at(rows, denoise, np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32))
    assert np.isfinite(end).all()


@pytest.mark.parametrize("solver", ["euler", "dpmpp-2m"])
@every_prediction
def test_zero_terminal_snr_is_finite(solver, prediction):
    process = Diffusion(spacing="trailing", zero_terminal_snr=True, prediction=prediction)
    for steps in (1, 2, 10, 1000):
        table(solver, process, steps)


def test_epsilon_says_nothing_of_x0_at_pure_noise():
    process = Diffusion(spacing="trailing", zero_terminal_snr=True)
    with pytest.raises(MmgenError, match="pure noise"):
        table("ddim", process, 10)
    table("ddim", Diffusion(spacing="leading", zero_terminal_snr=True), 10)
    table("ddim", Diffusion(spacing="trailing", zero_terminal_snr=True, prediction="v"), 10)


@pytest.mark.parametrize("process", [Diffusion(), Flow()])
def test_solvers_fit_one_process_or_both(process):
    for solver in SOLVERS:
        if solver in solvers_for(process):
            assert len(table(solver, process, 4)) == 4
        else:
            with pytest.raises(MmgenError, match=f"solver for a {process.kind} process"):
                table(solver, process, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ddmi", Diffusion(), 4), "solver, got 'ddmi', wanted 'ddim'"),
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
    ],
)
def test_impossible_runs(arguments, message):
    with pytest.raises(MmgenError, match=message):
        table(*arguments)


@pytest.mark.parametrize(
    ("solver", "options", "message"),
    [
        ("ddim", {"order": 2}, "option 'order' of solver 'ddim', wanted 'eta'"),
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
    with pytest.raises(MmgenError, match="sigmas, got 'lu', wanted 'schedule' or 'karras' or 'exponential'"):
        table("euler", Diffusion(), 4, sigmas="lu")
    with pytest.raises(MmgenError, match="sigmas with solver 'ddim', got 'karras'"):
        table("ddim", Diffusion(), 4, sigmas="karras")


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
