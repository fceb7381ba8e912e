"""diffusers' schedulers as oracles: their loop, their arithmetic in float64, and what is asked of both."""

import itertools
import random
import sys
from unittest.mock import patch

import numpy as np
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from mmgen.runtime.solvers.reference import run

CLASSES = (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
# Whose processes are EDM's; folders of a pipeline with one aren't read.
ON_EDM = (CMStochasticIterativeScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler)


SHAPE = (2, 3, 5)
STEPS = (1, 2, 3, 5, 7, 10, 20, 50, 100)
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}  # ours: theirs
KINDS = ("schedule", "karras", "exponential", "beta")


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module, **names):
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


def in_float64(monkeypatch):
    """Make diffusers' schedulers compute in float64 where they say float32."""
    for module in map(module_of, (*CLASSES, *ON_EDM)):
        monkeypatch.setattr(module, "torch", _Replaced(torch, float32=torch.float64))
        if hasattr(module, "np"):
            monkeypatch.setattr(module, "np", _Replaced(np, float32=np.float64))


def denoise(x, t):
    """Any smooth nonlinear function of all of x and of t will do."""
    return np.tanh(0.8 * x - 0.3 * np.roll(x, 1, -1)) + 0.2 * np.sin(t / 50 + x.mean(-1, keepdims=True))


def far(a, b):
    """Relative RMS."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def some(count, **choices):
    """Choose combinations of the choices, the same ones each time; every number of steps is among them."""
    combinations = [dict(zip(choices, c, strict=True)) for c in itertools.product(*choices.values())]
    chosen = random.Random(count).sample(combinations, min(count, len(combinations)))
    return [{"steps": steps, **c} for steps, c in zip(itertools.cycle(STEPS), chosen, strict=False)]


def sigmas_flag(kind):
    return {} if kind == "schedule" else {f"use_{kind}_sigmas": True}


def made(kind, **config):
    """Construct a scheduler; those that set all training steps as they are made, which takes them long, set one."""
    original = kind.set_timesteps
    with patch.object(kind, "set_timesteps", lambda self, steps, *more: original(self, 1, *more)):
        return kind(**config)


def follow(scheduler, rows, dtype, *, told=None, **step):
    """Run both; the largest relative RMS between their states after the same step."""
    rng = np.random.default_rng(0)
    start, noises = rng.standard_normal(SHAPE).astype(dtype), rng.standard_normal((len(rows), *SHAPE)).astype(dtype)
    theirs = states_of(scheduler, start, noises=noises, told=told, **step)
    ours = run(rows, denoise, start, noises=noises)
    errors = [far(state[0], sample) for state, sample in zip(ours, theirs, strict=True)]
    assert np.isfinite(errors).all()
    return max(errors)


def states_of(scheduler, start, *, noises=None, told=None, **step):
    """Yield the sample after each step of a diffusers scheduler whose timesteps are set.

    ``noises`` (N, *shape) is what it draws, ``told`` are timesteps to tell the denoiser instead of the scheduler's, and
    ``step`` goes to its ``step``.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    module = module_of(type(scheduler))
    x = torch.from_numpy(start * start.dtype.type(float(getattr(scheduler, "init_noise_sigma", 1.0))))
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = torch.from_numpy(denoise(scaled.numpy(), float(t) if told is None else float(told[i])))
        with patch.object(module, "randn_tensor", lambda *_, i=i, **__: torch.from_numpy(noises[i]), create=True):
            x = scheduler.step(out, t, x, **step).prev_sample
        yield x.numpy()


def module_of(kind):
    return sys.modules[kind.__module__]
