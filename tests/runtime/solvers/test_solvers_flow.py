"""Solvers along a flow are diffusers' schedulers and the loops of robots' action heads, step by step."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from schedulers import KINDS, SHAPE, STEPS, denoise, far, follow, in_float64, sigmas_flag, some
from tolerances import LIMITS

from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import ALONG_FLOW, exact, table
from mmgen.runtime.solvers.schedules import flow_levels, resolution_shift
from mmgen.runtime.storage.process import Flow


@pytest.fixture
def double(monkeypatch):
    in_float64(monkeypatch)


def inverted_flow(inverted, **fields):
    return Flow(noise_time=0 if inverted else 1, velocity="data-noise" if inverted else "noise-data", **fields)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.6])
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("terminal", [None, 0.02, 0.4])
def test_flow_euler(double, shift, inverted, terminal):
    for c in some(18, train=(1000, 50), sigmas=KINDS):
        if c["steps"] == 1 and terminal:  # theirs divides by 0
            continue
        process = inverted_flow(
            inverted,
            timestep_scale=c["train"],
            shift=shift,
            schedule="diffusers",
            train_timesteps=c["train"],
            terminal=terminal,
        )
        scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=c["train"],
            shift=shift,
            invert_sigmas=inverted,
            shift_terminal=terminal,
            **sigmas_flag(c["sigmas"]),
        )
        scheduler.set_timesteps(c["steps"])
        rows = exact("flow-euler", process, c["steps"], sigmas=c["sigmas"])
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"], c


def test_stochastic_flow_euler(double):
    for steps, shift, sigmas in itertools.product(STEPS, (1.0, 3.0), KINDS):
        process = Flow(shift=shift, schedule="diffusers")
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, stochastic_sampling=True, **sigmas_flag(sigmas))
        scheduler.set_timesteps(steps)
        rows = exact("flow-euler", process, steps, sigmas=sigmas, options={"stochastic_sampling": True})
        assert rows.stochastic.tolist() == [True] * (steps - 1) + [False]
        assert follow(scheduler, rows, np.float64) < LIMITS["solver, float64"]


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096, 6000])
def test_a_shift_that_depends_on_the_resolution(double, tokens, kind):
    """As FluxPipeline asks for it: its own even sigmas, and mu from the number of tokens."""
    mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
    process = Flow(shift=resolution_shift(tokens, kind=kind))
    for steps in STEPS:
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        assert follow(scheduler, exact("flow-euler", process, steps), np.float64) < LIMITS["solver, float64"]


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.6])
def test_flow_heun(double, shift):
    for steps, train in itertools.product(STEPS, (1000, 50)):
        process = Flow(timestep_scale=train, shift=shift, schedule="diffusers", train_timesteps=train)
        scheduler = FlowMatchHeunDiscreteScheduler(num_train_timesteps=train, shift=shift)
        scheduler.set_timesteps(steps)
        assert follow(scheduler, exact("flow-heun", process, steps), np.float64) < LIMITS["solver, float64"]


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "dpmpp-sde-2m"])
def test_flow_dpm(double, solver, solver_type):
    orders = (3,) if solver == "dpmpp-3m" else (1, 2)
    for c in some(18, order=orders, shift=(1.0, 3.0), lower_order_final=(True, False)):
        process = Flow(shift=c["shift"], schedule="dpm", integer_timesteps=True)
        options = {"solver_type": solver_type, "lower_order_final": c["lower_order_final"]}
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=c["shift"],
            solver_order=c["order"],
            algorithm_type="sde-dpmsolver++" if solver == "dpmpp-sde-2m" else "dpmsolver++",
            **options,
        )
        scheduler.set_timesteps(c["steps"])
        if solver != "dpmpp-3m":
            options["solver_order"] = c["order"]
        rows = exact(solver, process, c["steps"], options=options)
        assert np.abs(rows.timestep - scheduler.timesteps.numpy()).max() <= 1  # theirs may lose one to rounding
        assert follow(scheduler, rows, np.float64, told=rows.timestep) < LIMITS["solver, float64"], c


@pytest.mark.parametrize("schedule", ["uniform", "diffusers"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "dpmpp-sde-2m"])
def test_flow_dpm_on_levels_of_the_process(double, solver, schedule):
    """From pure noise, where log(alpha / sigma) is infinite; the solver of diffusers is given these levels."""
    for steps, shift in itertools.product(STEPS, (1.0, 3.0)):
        process = Flow(shift=shift, schedule=schedule)
        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            solver_order=3 if solver == "dpmpp-3m" else 2,
            algorithm_type="sde-dpmsolver++" if solver == "dpmpp-sde-2m" else "dpmsolver++",
        )
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.from_numpy(flow_levels(process, steps, "schedule"))
        rows = exact(solver, process, steps)
        assert follow(scheduler, rows, np.float64, told=rows.timestep) < LIMITS["solver, float64"]


@pytest.mark.parametrize("terminal", [None, 0.1])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_flow_unipc(double, shift, terminal):
    options = {
        "solver_order": (1, 2, 3),
        "lower_order_final": (True,),
        "solver_type": ("bh2",),
        "disable_corrector": ("", "0,2"),
    }
    for c in some(9 * 6, **options, again=range(9)):
        chosen = {name: c[name] for name in options}
        disabled = list(map(int, filter(None, chosen["disable_corrector"].split(","))))
        if c["steps"] == 1 and terminal:  # theirs divides by 0
            continue
        scheduler = UniPCMultistepScheduler(
            use_flow_sigmas=True,
            prediction_type="flow_prediction",
            flow_shift=shift,
            shift_terminal=terminal,
            **{**chosen, "disable_corrector": disabled},
        )
        scheduler.set_timesteps(c["steps"])
        process = Flow(shift=shift, schedule="unipc", integer_timesteps=True, terminal=terminal)
        rows = exact("unipc", process, c["steps"], options=chosen)
        assert np.abs(rows.timestep - scheduler.timesteps.numpy()).max() <= 1  # theirs may lose one to rounding
        assert follow(scheduler, rows, np.float64, told=rows.timestep) < LIMITS["solver, float64"], c


@pytest.mark.parametrize("solver", ALONG_FLOW)
@pytest.mark.parametrize("schedule", ["uniform", "diffusers", "dpm", "unipc"])
def test_float32(solver, schedule):
    """Stored tables, run in float32, against exact ones."""
    rng = np.random.default_rng(0)
    for c in some(27, shift=(1.0, 3.0, 0.5), terminal=(None, 0.1), sigmas=KINDS):
        process = Flow(shift=c["shift"], schedule=schedule, terminal=c["terminal"])
        stored, unrounded = (make(solver, process, c["steps"], sigmas=c["sigmas"]) for make in (table, exact))
        start = rng.standard_normal(SHAPE).astype(np.float32)
        noises = rng.standard_normal((len(stored), *SHAPE)).astype(np.float32)
        *_, a = run(stored, denoise, start, noises=noises)
        *_, b = run(unrounded, denoise, start.astype(np.float64), noises=noises.astype(np.float64))
        assert a.dtype == np.float32
        limit = LIMITS["solver, float32, extrapolating" if solver == "lms" else "solver, float32"]
        assert far(a[0], b[0]) < limit, c


# Robot action heads: their loops, written out.


def test_groot_loop():
    """Noise at t = 0, x += v / N, the denoiser conditioned on whole thousandths of t."""
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
