"""diffusers' schedulers as oracles: their loop, and their arithmetic in float64."""

import numpy as np
import torch
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_dpmsolver_multistep,
    scheduling_euler_discrete,
    scheduling_flow_match_euler_discrete,
)

_MODULES = (
    scheduling_ddim,
    scheduling_dpmsolver_multistep,
    scheduling_euler_discrete,
    scheduling_flow_match_euler_discrete,
)


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module, **names):
        self.__dict__.update(names, _module=module)

    def __getattr__(self, name):
        return getattr(self._module, name)


def in_float64(monkeypatch):
    """What diffusers' schedulers know as float32 is float64 from here on."""
    for module in _MODULES:
        monkeypatch.setattr(module, "torch", _Replaced(torch, float32=torch.float64))
        if hasattr(module, "np"):
            monkeypatch.setattr(module, "np", _Replaced(np, float32=np.float64))


def denoise(x, t):
    """Any smooth nonlinear function of all of x and of t will do."""
    return np.tanh(0.8 * x - 0.3 * np.roll(x, 1, -1)) + 0.2 * np.sin(t / 50 + x.mean(-1, keepdims=True))


def far(a, b):
    """Relative RMS."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def states_of(scheduler, start, *, eta=None, noises=None, told=None):
    """Yield the sample after each step of a diffusers scheduler whose timesteps are set.

    ``told`` are timesteps to tell the denoiser instead of the scheduler's; ``eta`` and ``noises`` are for DDIM.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x = torch.from_numpy(start * start.dtype.type(float(getattr(scheduler, "init_noise_sigma", 1.0))))
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = torch.from_numpy(denoise(scaled.numpy(), float(t) if told is None else float(told[i])))
        extra = {} if eta is None else {"eta": eta, "variance_noise": torch.from_numpy(noises[i])}
        x = scheduler.step(out, t, x, **extra).prev_sample
        yield x.numpy()
