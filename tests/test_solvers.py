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

from mmgen.runtime.process import Diffusion, Flow
from mmgen.runtime.reference import run
from mmgen.runtime.schedules import alphas_cumprod, flow_levels
from mmgen.runtime.solvers import exact, table

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
