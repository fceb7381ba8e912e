"""Euler's and Heun's methods: in sigma, the ratio of noise to signal, and along a straight path from noise to data."""

from dataclasses import dataclass

import numpy as np

from mmgen.runtime.solvers.schedules import FinalSigma, euler_levels, flow_levels
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.transitions import (
    NOISE,
    OUT,
    X0,
    X,
    limit_of,
    no_transition,
    rows_along,
    rows_in_sigma,
    toward_noise,
    twice,
)
from mmgen.runtime.storage.process import Diffusion, Flow
from mmgen.runtime.storage.schema import Sigmas


@dataclass(frozen=True)
class Euler:
    """Options of ``euler``."""

    final_sigmas_type: FinalSigma = "zero"  # where the last step ends: no noise, or the least noise of training


@dataclass(frozen=True)
class EulerAncestral:
    """Options of ``euler-ancestral``: none."""


@dataclass(frozen=True)
class Heun:
    """Options of ``heun``: none."""


def euler(process: Diffusion, steps: int, sigmas: Sigmas, options: Euler, begin: int = 0) -> Table:
    """Build the table of Euler's method.

    x' = x + (sigma' - sigma) (x - x0) / sigma (Karras et al. 2022, algorithm 2 without churn).
    """
    levels, now = euler_levels(process, steps, sigmas, options.final_sigmas_type, begin)
    ratio = levels[1:] / levels[:-1]
    transition = no_transition(len(now))
    transition[:, X, X] = ratio
    transition[:, X, X0] = 1 - ratio
    return rows_in_sigma(process, now, levels[:-1], transition)


def euler_ancestral(process: Diffusion, steps: int, sigmas: Sigmas, options: EulerAncestral, begin: int = 0) -> Table:
    """Build the table of Euler's method to less noise than the step asks for, then fresh noise up to it.

    The variance that is added is that of the posterior given x0, sigma'^2 (sigma^2 - sigma'^2) / sigma^2 (Ho et al.
    2020, eq. 7, in sigma), so that Euler goes to sigma'^2 / sigma.
    """
    levels, now = euler_levels(process, steps, sigmas, "zero", begin)
    ratio = levels[1:] / levels[:-1]
    transition = no_transition(len(now))
    transition[:, X, X] = ratio**2
    transition[:, X, X0] = 1 - ratio**2
    # Two training sigmas may rise at the noisy end with zero terminal SNR: nothing is added there.
    transition[:, X, NOISE] = levels[1:] * np.sqrt(np.maximum(1 - ratio**2, 0))
    return rows_in_sigma(process, now, levels[:-1], transition)


def heun(process: Diffusion, steps: int, sigmas: Sigmas, options: Heun, begin: int = 0) -> Table:
    """Build the table of Heun's method, 2 N - 1 evaluations; x0 is clamped if the process says so.

    Karras et al. 2022, algorithm 1: a step evaluates dx/dsigma = (x - x0) / sigma where it starts and where Euler would
    take it, and goes along the mean; the last one, to sigma = 0, is Euler's.  Between the two, slot 1 holds
    x + (sigma' - sigma) / 2 dx/dsigma.
    """
    levels, now = euler_levels(process, steps, sigmas, "zero", begin)
    ratio = levels[1:] / levels[:-1]
    transition = no_transition(2 * len(now) - 1)
    first, second = transition[::2], transition[1::2]
    first[:, X, X] = ratio
    first[:, X, X0] = 1 - ratio
    first[:-1, 1, X] = (1 + ratio[:-1]) / 2
    first[:-1, 1, X0] = (1 - ratio[:-1]) / 2
    second[:, X, 1] = 1
    second[:, X, X] = (1 - 1 / ratio[:-1]) / 2
    second[:, X, X0] = -second[:, X, X]
    return rows_in_sigma(process, twice(now), twice(levels[:-1]), transition, x0_limit=limit_of(process))


@dataclass(frozen=True)
class FlowEuler:
    """Options of ``flow-euler``."""

    stochastic_sampling: bool = False  # each step adds fresh noise to the predicted data


@dataclass(frozen=True)
class FlowHeun:
    """Options of ``flow-heun``: none."""


def flow_euler(process: Flow, steps: int, sigmas: Sigmas, options: FlowEuler, begin: int = 0) -> Table:
    """Build the table of Euler's method along a flow, x' = x + (s' - s) dx/ds (Liu et al. 2023, algorithm 1).

    Stochastic: x' = (1 - s') data + s' noise, the path's own definition (Lipman et al. 2023, eq. 22 with sigma_min 0)
    at fresh noise, as few-step models are sampled (Song et al. 2023, algorithm 1).
    """
    levels = flow_levels(process, steps, sigmas, begin)
    transition = no_transition(len(levels) - 1)
    if options.stochastic_sampling:
        transition[:, X, X0] = 1 - levels[1:]
        transition[:, X, NOISE] = levels[1:]
    else:
        transition[:, X, X] = 1
        transition[:, X, OUT] = np.diff(levels) * toward_noise(process)
    return rows_along(process, levels[:-1], transition)


def flow_heun(process: Flow, steps: int, sigmas: Sigmas, options: FlowHeun, begin: int = 0) -> Table:
    """Build the table of Heun's method along a flow, 2 N - 1 evaluations; the last step is Euler's.

    Karras et al. 2022, algorithm 1, with dx/ds.  Between the two evaluations of a step, slot 1 holds
    x + (s' - s) / 2 dx/ds.
    """
    levels = flow_levels(process, steps, sigmas, begin)
    step = np.diff(levels) * toward_noise(process)
    transition = no_transition(2 * len(step) - 1)
    first, second = transition[::2], transition[1::2]
    first[:, X, X] = 1
    first[:, X, OUT] = step
    first[:-1, 1, X] = 1
    first[:-1, 1, OUT] = step[:-1] / 2
    second[:, X, 1] = 1
    second[:, X, OUT] = step[:-1] / 2
    return rows_along(process, twice(levels[:-1]), transition)
