"""A solver's table, run by the reference loop, is the diffusers scheduler of that name, step by step.

diffusers computes in float32.  Most tests make it compute in float64, so that no wrong formula hides behind rounding;
``test_float32`` and ``test_diffusers_as_it_is`` then look at the stored tables.
"""

import itertools
import random

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from schedulers import denoise, far, in_float64, states_of
from tolerances import LIMITS

from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Diffusion, Flow
from mmgen.runtime.reference import run
from mmgen.runtime.schedules import alphas_cumprod, flow_levels, flow_timesteps, multistep_levels
from mmgen.runtime.solvers import SOLVERS, exact, solvers_for, table

SHAPE = (2, 3, 5)
STEPS = (1, 2, 3, 5, 7, 10, 20, 50, 100)
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}  # ours: theirs
KINDS = ("schedule", "karras", "exponential")

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES)
every_spacing = pytest.mark.parametrize("spacing", SPACINGS)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)


def some(count, **choices):
    """Combinations of the choices, the same ones each time; every number of steps is among them."""
    combinations = [dict(zip(choices, c, strict=True)) for c in itertools.product(*choices.values())]
    chosen = random.Random(count).sample(combinations, min(count, len(combinations)))
    return [{"steps": steps, **c} for steps, c in zip(itertools.cycle(STEPS), chosen, strict=False)]


def follow(scheduler, rows, dtype, *, eta=None, told=None):
    """Run both; the largest relative RMS between their states after the same step."""
    rng = np.random.default_rng(0)
    start, noises = rng.standard_normal(SHAPE).astype(dtype), rng.standard_normal((len(rows), *SHAPE)).astype(dtype)
    theirs = states_of(scheduler, start, eta=eta, noises=noises, told=told)
    ours = run(rows, denoise, start, noises=noises)
    errors = [far(state[0], sample) for state, sample in zip(ours, theirs, strict=True)]
    assert np.isfinite(errors).all()
    return max(errors)


def ddim_pair(steps, schedule, spacing, prediction, clip, final_one, offset, zero_snr):
    process = Diffusion(
        beta_schedule=schedule,
        spacing=spacing,
        prediction=prediction,
        clip=clip,
        final_alpha_one=final_one,
        steps_offset=offset,
        zero_terminal_snr=zero_snr,
    )
    scheduler = DDIMScheduler(
        beta_schedule=schedule,
        timestep_spacing=spacing,
        prediction_type=PREDICTIONS[prediction],
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        set_alpha_to_one=final_one,
        steps_offset=offset,
        rescale_betas_zero_snr=zero_snr,
    )
    scheduler.set_timesteps(steps)
    return process, scheduler


def sigmas_flag(kind):
    return {} if kind == "schedule" else {f"use_{kind}_sigmas": True}


def diffusion_pair(kind_of_scheduler, steps, schedule, spacing, prediction, offset, zero_snr, sigmas, **options):
    process = Diffusion(
        beta_schedule=schedule,
        spacing=spacing,
        prediction=prediction,
        steps_offset=offset,
        zero_terminal_snr=zero_snr,
    )
    scheduler = kind_of_scheduler(
        beta_schedule=schedule,
        timestep_spacing=spacing,
        prediction_type=PREDICTIONS[prediction],
        steps_offset=offset,
        rescale_betas_zero_snr=zero_snr,
        **sigmas_flag(sigmas),
        **options,
    )
    scheduler.set_timesteps(steps)
    return process, scheduler


@every_schedule
@every_spacing
@every_prediction
def test_ddim(double, schedule, spacing, prediction):
    for c in some(
        36, clip=(None, 0.7), final_one=(True, False), offset=(0, 1), zero_snr=(True, False), eta=(0.0, 0.6, 1.0)
    ):
        eta = c.pop("eta")
        if prediction == "epsilon" or eta == 1:  # theirs divides by 0, or takes the root of -1e-17
            c["zero_snr"] = False
        process, scheduler = ddim_pair(schedule=schedule, spacing=spacing, prediction=prediction, **c)
        rows = exact("ddim", process, c["steps"], options={"eta": eta})
        assert follow(scheduler, rows, np.float64, eta=eta) < LIMITS["solver, float64"], c


@every_schedule
@every_spacing
@every_prediction
def test_euler(double, schedule, spacing, prediction):
    for c in some(27, sigmas=KINDS, offset=(0, 1), zero_snr=(True, False), final_sigmas_type=("zero", "sigma_min")):
        process, scheduler = diffusion_pair(
            EulerDiscreteScheduler, schedule=schedule, spacing=spacing, prediction=prediction, **c
        )
        options = {"final_sigmas_type": c["final_sigmas_type"]}
        rows = exact("euler", process, c["steps"], sigmas=c["sigmas"], options=options)
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"], c


@every_schedule
@every_spacing
@every_prediction
def test_dpmpp_2m(double, schedule, spacing, prediction):
    options = {
        "solver_order": (1, 2),
        "solver_type": ("midpoint", "heun"),
        "lower_order_final": (True, False),
        "euler_at_final": (True, False),
        "final_sigmas_type": ("zero", "sigma_min"),
        "lambda_min_clipped": (-np.inf, -5.1),
    }
    for c in some(36, sigmas=KINDS, offset=(0, 1), zero_snr=(True, False), **options):
        if c["final_sigmas_type"] == "sigma_min" and c["solver_type"] == "heun" and c["sigmas"] != "schedule":
            continue  # the last step has no length, and theirs divides by it
        process, scheduler = diffusion_pair(
            DPMSolverMultistepScheduler, schedule=schedule, spacing=spacing, prediction=prediction, **c
        )
        rows = exact("dpmpp-2m", process, c["steps"], sigmas=c["sigmas"], options={name: c[name] for name in options})
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"], c


def test_dpmpp_2m_ends_in_first_order_below_15_steps(double):
    options = {"final_sigmas_type": "sigma_min"}
    for steps in (14, 15):
        process, scheduler = diffusion_pair(
            DPMSolverMultistepScheduler, steps, "linear", "linspace", "epsilon", 0, False, "schedule", **options
        )
        rows = exact("dpmpp-2m", process, steps, options=options)
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"]
        assert (rows.transition[-1, 0, 1] == 0) == (steps < 15)


@every_schedule
@every_prediction
def test_float32(schedule, prediction):
    """Stored tables, run in float32, against exact ones."""
    rng = np.random.default_rng(0)
    for c in some(45, spacing=SPACINGS, zero_snr=(True, False), solver=("ddim", "euler", "dpmpp-2m"), sigmas=KINDS):
        solver, steps, sigmas = c["solver"], c["steps"], c["sigmas"]
        if solver == "ddim" and (sigmas != "schedule" or (prediction == "epsilon" and c["zero_snr"])):
            continue
        process = Diffusion(
            beta_schedule=schedule, prediction=prediction, spacing=c["spacing"], zero_terminal_snr=c["zero_snr"]
        )
        start = rng.standard_normal(SHAPE).astype(np.float32)
        stored = run(table(solver, process, steps, sigmas=sigmas), denoise, start)
        unrounded = run(exact(solver, process, steps, sigmas=sigmas), denoise, start.astype(np.float64))
        for a, b in zip(stored, unrounded, strict=True):
            assert a.dtype == np.float32
            assert far(a[0], b[0]) < LIMITS["solver, float32"], c


@every_schedule
@every_spacing
@pytest.mark.parametrize("steps", [2, 10, 50])
def test_diffusers_as_it_is(schedule, spacing, steps):
    """Both in float32, as users see them; nearly all of the difference is the rounding of diffusers' betas."""
    for solver, kind in (("euler", EulerDiscreteScheduler), ("dpmpp-2m", DPMSolverMultistepScheduler)):
        process, scheduler = diffusion_pair(kind, steps, schedule, spacing, "epsilon", 0, False, "schedule")
        rows = table(solver, process, steps)
        assert follow(scheduler, rows, np.float32) < LIMITS["solver, diffusers in float32"], solver
    process, scheduler = ddim_pair(steps, schedule, spacing, "epsilon", None, True, 0, False)
    assert follow(scheduler, table("ddim", process, steps), np.float32) < LIMITS["solver, diffusers in float32"]


@every_schedule
@pytest.mark.parametrize("sigmas", KINDS)
def test_timesteps_of_diffusers_as_it_is(schedule, sigmas):
    """Where diffusers makes a float32 timestep whole, rounding may move it across; elsewhere it may hardly differ."""
    for steps in STEPS:
        for solver, kind in (("euler", EulerDiscreteScheduler), ("dpmpp-2m", DPMSolverMultistepScheduler)):
            process, scheduler = diffusion_pair(kind, steps, schedule, "linspace", "v", 0, False, sigmas)
            error = np.abs(table(solver, process, steps, sigmas=sigmas).timestep - scheduler.timesteps.numpy()).max()
            whole = solver == "dpmpp-2m" and sigmas != "schedule"
            assert error <= (1 if whole else LIMITS["timestep, diffusers in float32"])


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.6])
@pytest.mark.parametrize("inverted", [False, True])
def test_flow_euler(double, shift, inverted):
    for steps, train, sigmas in itertools.product(STEPS, (1000, 50), KINDS):
        process = Flow(
            noise_time=0 if inverted else 1,
            velocity="data-noise" if inverted else "noise-data",
            timestep_scale=train,
            shift=shift,
            schedule="diffusers",
            train_timesteps=train,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=train, shift=shift, invert_sigmas=inverted, **sigmas_flag(sigmas)
        )
        scheduler.set_timesteps(steps)
        rows = exact("flow-euler", process, steps, sigmas=sigmas)
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"]


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2])
def test_flow_dpmpp_2m(double, order, solver_type):
    """The solver of diffusers has noise levels of its own; here it is given those of the process."""
    for steps, shift, process_schedule in itertools.product(STEPS, (1.0, 3.0), ("uniform", "diffusers")):
        process = Flow(shift=shift, schedule=process_schedule)
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=order, solver_type=solver_type
        )
        scheduler.set_timesteps(steps)
        levels = flow_levels(process, steps, "schedule")
        scheduler.sigmas = torch.from_numpy(levels)
        rows = exact("dpmpp-2m", process, steps, options={"solver_order": order, "solver_type": solver_type})
        assert follow(scheduler, rows, np.float64, told=rows.timestep) < LIMITS["solver, float64"]


def test_explicit_betas_and_short_training(double):
    betas = np.linspace(0.001, 0.3, 20)
    process = Diffusion(train_timesteps=20, betas=tuple(betas), spacing="trailing")
    assert np.allclose(alphas_cumprod(process), np.cumprod(1 - betas), rtol=1e-14, atol=0)
    for steps in (1, 3, 7, 20):
        for solver, kind in (
            ("ddim", DDIMScheduler),
            ("euler", EulerDiscreteScheduler),
            ("dpmpp-2m", DPMSolverMultistepScheduler),
        ):
            clip = {"clip_sample": False} if solver == "ddim" else {}
            scheduler = kind(num_train_timesteps=20, trained_betas=list(betas), timestep_spacing="trailing", **clip)
            scheduler.set_timesteps(steps)
            eta = 0.0 if solver == "ddim" else None
            assert follow(scheduler, exact(solver, process, steps), np.float64, eta=eta) < LIMITS["solver, float64"]


# Robot action heads: their loops, written out.


def test_groot_loop():
    """Noise at t = 0, x += v / N, the denoiser told whole thousandths of t."""
    process = Flow(noise_time=0, velocity="data-noise", timestep_scale=1000.0, integer_timesteps=True)
    for steps in (1, 3, 4, 10):
        x = start = np.random.default_rng(1).standard_normal(SHAPE)
        for i, state in enumerate(run(exact("flow-euler", process, steps), denoise, start)):
            x = x + denoise(x, int(i / steps * 1000)) / steps
            assert far(state[0], x) < LIMITS["solver, float64"]


def test_pi0_loop():
    """Noise at t = 1, x -= v / N."""
    process = Flow(timestep_scale=1.0)
    x = start = np.random.default_rng(1).standard_normal(SHAPE)
    for i, state in enumerate(run(exact("flow-euler", process, 10), denoise, start)):
        x = x - denoise(x, 1 - i / 10) / 10
        assert far(state[0], x) < LIMITS["solver, float64"]


# Denoisers in closed form.


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
