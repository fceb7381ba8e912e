"""Adams-Bashforth methods: LMS in sigma and along a flow, and PLMS from one training timestep to another."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmgen.runtime.solvers.onestep import shares_after, visit
from mmgen.runtime.solvers.schedules import Array, alphas_cumprod, edm_levels, euler_levels, flow_levels
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.transitions import (
    OUT,
    X0,
    X,
    no_transition,
    noise_from,
    rows_along,
    rows_at,
    rows_in_sigma,
    rows_of_noise,
    toward_noise,
    x0_from,
)
from mmgen.runtime.storage.process import EDM, Diffusion, Flow
from mmgen.runtime.storage.schema import Sigmas
from mmgen.runtime.storage.tensors import K

PLMS_WEIGHTS = (  # of the denoiser's outputs, the newest first, by evaluation
    (1.0,),
    (1 / 2, 1 / 2),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclass(frozen=True)
class LMS:
    """Options of ``lms``."""

    order: Literal[1, 2, 3, 4] = 4  # number of derivatives that a step uses; 1 is Euler


@dataclass(frozen=True)
class PLMS:
    """Options of ``plms``: none."""


def lms(process: Diffusion, steps: int, sigmas: Sigmas, options: LMS, begin: int = 0) -> Table:
    """Build the table of linear multistep in sigma: dx/dsigma = (x - x0) / sigma (Karras et al. 2022, eq. 1 and 3)."""
    levels, now = euler_levels(process, steps, sigmas, "zero", begin)
    return rows_in_sigma(process, now, levels[:-1], _in_sigma(levels, options.order))


def edm_lms(process: EDM, steps: int, sigmas: Sigmas, options: LMS, begin: int = 0) -> Table:
    """Build the table of linear multistep in sigma; see ``lms``."""
    levels = edm_levels(process, steps, sigmas, begin=begin)
    return rows_of_noise(process, levels[:-1], _in_sigma(levels, options.order))


def _in_sigma(levels: Array, order: int) -> Array:
    derivative = np.zeros((len(levels) - 1, K + 3))
    derivative[:, X] = 1 / levels[:-1]
    derivative[:, X0] = -1 / levels[:-1]
    return adams_bashforth(levels, derivative, order)


def flow_lms(process: Flow, steps: int, sigmas: Sigmas, options: LMS, begin: int = 0) -> Table:
    """Build the table of linear multistep along a flow, in the share of noise."""
    levels = flow_levels(process, steps, sigmas, begin)
    derivative = np.zeros((len(levels) - 1, K + 3))
    derivative[:, OUT] = toward_noise(process)
    return rows_along(process, levels[:-1], adams_bashforth(levels, derivative, options.order))


def adams_bashforth(levels: Array, derivative: Array, order: int) -> Array:
    """Return transitions (N, K, K + 3) of Adams-Bashforth with uneven steps (Hairer et al. 1993, III.5).

    The derivative by the level is interpolated at this level and those before, and integrated over the step.

    Args:
        levels: (N + 1,).
        derivative: (N, K + 3) in columns of a transition; slots 1 to 3 hold those of the earlier steps.
        order: how many derivatives a step uses, once there are so many.
    """
    steps = len(derivative)
    transition = no_transition(steps)
    for i in range(steps):
        h = levels[i + 1] - levels[i]
        nodes = (levels[max(0, i + 1 - order) : i + 1][::-1] - levels[i]) / h
        powers = np.vander(nodes, increasing=True).T
        weights = h * np.linalg.solve(powers, 1 / np.arange(1, len(nodes) + 1))  # exact for every power over [0, 1]
        transition[i, X, X] = 1
        transition[i, X] += weights[0] * derivative[i]
        transition[i, X, 1 : len(weights)] = weights[1:]
        transition[i, 1] = derivative[i]
        transition[i, [2, 3], [1, 2]] = 1
    return transition


def plms(process: Diffusion, steps: int, sigmas: Sigmas, options: PLMS, begin: int = 0) -> Table:
    """Build the table of pseudo linear multistep, N + 1 evaluations (Liu et al. 2022, eq. 9 and 12).

    PNDM without Runge-Kutta steps: DDIM's step with Adams-Bashforth 4's mean of the predicted noise.  The first step is
    repeated with the mean of the noise at its two ends, which takes the extra evaluation; then orders 2 and 3 lead up
    to 4.  Slots 1 to 3 hold the denoiser's last outputs, slot 3 the first sample until its step is repeated.  A step
    goes from timestep t to t - T // N whatever the spacing is, as in diffusers.
    """
    visited, _ = visit("plms", process, steps, sigmas, begin)
    stride = process.train_timesteps // steps
    now = np.insert(visited, 1, visited[1]) if len(visited) > 1 else visited
    start, end = now.copy(), now - stride
    if len(visited) > 1:
        start[1], end[1] = now[1] + stride, now[1]
    shares = alphas_cumprod(process)
    a_now, a = shares[now.astype(np.int64)], shares[start.astype(np.int64)]
    a_next = shares_after(process, end)[:, None]
    of_x0 = x0_from(process.prediction, np.sqrt(a), np.sqrt(1 - a))
    of_noise = noise_from(process.prediction, np.sqrt(a), np.sqrt(1 - a))
    onward = np.sqrt(a_next) * of_x0 + np.sqrt(1 - a_next) * of_noise  # (N + 1, 2): of x and of the mean output
    transition = no_transition(len(now))
    for i in range(len(now)):
        weights = np.array(PLMS_WEIGHTS[min(i, len(PLMS_WEIGHTS) - 1)])
        transition[i, X, 3 if i == 1 else X] = onward[i, 0]
        transition[i, X, [OUT, 1, 2, 3][: len(weights)]] += onward[i, 1] * weights
        if i == 0:
            transition[i, 1, OUT] = 1
            transition[i, 3, X] = 1
        elif i == 1:
            transition[i, 1, 1] = 1  # the mean has been used; this output isn't kept
        else:
            transition[i, 1, OUT] = 1
            transition[i, [2, 3], [1, 2]] = 1
    return rows_at(process, now, np.sqrt(a_now), np.sqrt(1 - a_now), transition)
