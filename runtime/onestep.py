"""Solvers that remember nothing between steps: DDIM, Euler."""

from dataclasses import dataclass

import numpy as np

from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Diffusion, Flow
from mmgen.runtime.rows import NOISE, OUT, X0, X, data_from, no_transition, noise_from, rows, toward_noise, x0_from
from mmgen.runtime.schedules import (
    FinalSigma,
    Sigmas,
    alphas_cumprod,
    euler_levels,
    flow_levels,
    flow_timesteps,
    timesteps,
)
from mmgen.runtime.table import Table


@dataclass(frozen=True)
class DDIM:
    """Options of ``ddim``."""

    eta: float = 0.0  # fresh noise: 0 none, 1 as much as DDPM


@dataclass(frozen=True)
class Euler:
    """Options of ``euler``."""

    final_sigmas_type: FinalSigma = "zero"  # where the last step ends: no noise, or the least noise of training


@dataclass(frozen=True)
class FlowEuler:
    """Options of ``flow-euler``: none."""


def ddim(process: Diffusion, steps: int, sigmas: Sigmas, options: DDIM) -> Table:
    """DDIM (Song et al. 2021, eq. 12 and 16), x0 clamped if the process says so.

    The clamp acts on x0 alone: the direction to the next x keeps the unclamped prediction.  A step goes from timestep
    t to t - T // N whatever the spacing is, as in diffusers.
    """
    if sigmas != "schedule":
        raise MmgenError("sigmas with solver 'ddim'", got=repr(sigmas), wanted="'schedule'")
    if not 0 <= options.eta <= 1:
        raise MmgenError("option 'eta' of solver 'ddim'", got=options.eta, wanted="0 to 1")
    now = timesteps(process, steps).round()
    after = now - process.train_timesteps // steps
    shares = alphas_cumprod(process)
    last = 1.0 if process.final_alpha_one else shares[0]
    a = shares[now.astype(np.int64)]
    a_next = np.where(after >= 0, shares[after.clip(min=0).astype(np.int64)], last)
    if process.prediction == "epsilon" and not a.all():
        raise MmgenError(
            "solver 'ddim' starts at pure noise (zero_terminal_snr), where prediction 'epsilon' says nothing of x0",
            remedy="use solver 'euler' or 'dpmpp-2m', or a spacing that leaves the last training timestep out",
        )
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    deviation = options.eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    direction = np.sqrt(np.maximum(1 - a_next - deviation**2, 0))
    noise = noise_from(process.prediction, alpha, sigma)
    transition = no_transition(steps)
    transition[:, X, X] = direction * noise[:, 0]
    transition[:, X, X0] = np.sqrt(a_next)
    transition[:, X, OUT] = direction * noise[:, 1]
    transition[:, X, NOISE] = deviation
    limit = np.inf if process.clip is None else process.clip
    return rows(now, x0_from(process.prediction, alpha, sigma), transition, x0_limit=limit)


def euler(process: Diffusion, steps: int, sigmas: Sigmas, options: Euler) -> Table:
    """Euler's method in sigma (Karras et al. 2022, algorithm 2 without churn).

    The state is x / alpha, of variance 1 + sigma^2 over unit data; the denoiser sees it scaled back.
    """
    levels, now = euler_levels(process, steps, sigmas, options.final_sigmas_type)
    sigma = levels[:-1]
    alpha = 1 / np.sqrt(1 + sigma**2)
    prediction = x0_from(process.prediction, alpha, sigma * alpha)
    prediction[:, 0] *= alpha  # of the state, not of what the denoiser sees
    ratio = levels[1:] / sigma
    transition = no_transition(steps)
    transition[:, X, X] = ratio  # x + (sigma' - sigma) (x - x0) / sigma
    transition[:, X, X0] = 1 - ratio
    highest = float(levels.max())
    initial = (1 + highest**2) ** 0.5 if process.spacing == "leading" else highest
    return rows(now, prediction, transition, input_scale=alpha, initial_scale=initial)


def flow_euler(process: Flow, steps: int, sigmas: Sigmas, options: FlowEuler) -> Table:
    """Euler's method along a flow, x' = x + (s' - s) dx/ds (Liu et al. 2023, algorithm 1)."""
    levels = flow_levels(process, steps, sigmas)
    transition = no_transition(steps)
    transition[:, X, X] = 1
    transition[:, X, OUT] = np.diff(levels) * toward_noise(process)
    return rows(flow_timesteps(process, levels[:-1]), data_from(process, levels[:-1]), transition)
