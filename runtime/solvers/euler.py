"""Euler's and Heun's methods: in sigma, the ratio of noise to signal, and along a straight path from noise to data."""

from dataclasses import dataclass

import numpy as np

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.schedules import Array, FinalSigma, edm_levels, euler_levels, flow_levels
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
    rows_of_noise,
    toward_noise,
    twice,
)
from mmgen.runtime.storage.process import EDM, Diffusion, Flow
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
    return rows_in_sigma(process, now, levels[:-1], _euler(levels[:-1], levels[1:]))


def euler_ancestral(process: Diffusion, steps: int, sigmas: Sigmas, options: EulerAncestral, begin: int = 0) -> Table:
    """Build the table of Euler's method to less noise than the step asks for, then fresh noise up to it.

    The variance that is added is that of the posterior given x0, sigma'^2 (sigma^2 - sigma'^2) / sigma^2 (Ho et al.
    2020, eq. 7, in sigma), so that Euler goes to sigma'^2 / sigma.
    """
    levels, now = euler_levels(process, steps, sigmas, "zero", begin)
    return rows_in_sigma(process, now, levels[:-1], _ancestral(levels))


def heun(process: Diffusion, steps: int, sigmas: Sigmas, options: Heun, begin: int = 0) -> Table:
    """Build the table of Heun's method, 2 N - 1 evaluations; x0 is clamped if the process says so.

    Karras et al. 2022, algorithm 1: a step evaluates dx/dsigma = (x - x0) / sigma where it starts and where Euler would
    take it, and goes along the mean; the last one, to sigma = 0, is Euler's.  Between the two, slot 1 holds
    x + (sigma' - sigma) / 2 dx/dsigma.
    """
    levels, now = euler_levels(process, steps, sigmas, "zero", begin)
    transition = _heun(levels[:-1], levels[1:])
    return rows_in_sigma(process, twice(now), twice(levels[:-1]), transition, x0_limit=limit_of(process))


def _euler(start: Array, end: Array) -> Array:
    """Return transitions (N, K, K + 3) of Euler's method from sigmas (N,) to sigmas (N,)."""
    ratio = end / start
    transition = no_transition(len(ratio))
    transition[:, X, X] = ratio
    transition[:, X, X0] = 1 - ratio
    return transition


def _ancestral(levels: Array) -> Array:
    """Return transitions (N, K, K + 3) of Euler's method with fresh noise, between sigmas (N + 1,)."""
    ratio = levels[1:] / levels[:-1]
    transition = no_transition(len(ratio))
    transition[:, X, X] = ratio**2
    transition[:, X, X0] = 1 - ratio**2
    # Two training sigmas may rise at the noisy end with zero terminal SNR: nothing is added there.
    transition[:, X, NOISE] = levels[1:] * np.sqrt(np.maximum(1 - ratio**2, 0))
    return transition


def _heun(start: Array, end: Array) -> Array:
    """Return transitions (2 N - 1, K, K + 3) of Heun's method from sigmas (N,) to sigmas (N,), the last one's 0."""
    ratio = end / start
    transition = no_transition(2 * len(ratio) - 1)
    first, second = transition[::2], transition[1::2]
    first[:, X, X] = ratio
    first[:, X, X0] = 1 - ratio
    first[:-1, 1, X] = (1 + ratio[:-1]) / 2
    first[:-1, 1, X0] = (1 - ratio[:-1]) / 2
    second[:, X, 1] = 1
    second[:, X, X] = (1 - 1 / ratio[:-1]) / 2
    second[:, X, X0] = -second[:, X, X]
    return transition


@dataclass(frozen=True)
class EDMHeun:
    """Options of ``heun`` on an EDM process: its churn, which adds noise before a step (Karras et al. 2022, alg. 2)."""

    s_churn: float = 0.0  # how much, over all steps; 0: none
    s_tmin: float = 0.0  # where sigma is at least this
    s_tmax: float = np.inf  # and at most this
    s_noise: float = 1.0  # the noise's standard deviation; a little above 1 makes up for detail that is lost


@dataclass(frozen=True)
class EDMEuler(EDMHeun):
    """Options of ``euler`` on an EDM process: as ``heun``'s, and where the last step ends."""

    final_sigmas_type: FinalSigma = "zero"


def edm_euler(process: EDM, steps: int, sigmas: Sigmas, options: EDMEuler, begin: int = 0) -> Table:
    """Build the table of Euler's method (Karras et al. 2022, algorithm 2 without lines 9 to 11)."""
    levels = edm_levels(process, steps, sigmas, options.final_sigmas_type, begin)
    raised, added = _churned(levels[:-1], steps, options)
    transition = _euler(raised, levels[1:])
    transition[:-1, X, NOISE] = added[1:]
    return rows_of_noise(process, raised, transition, start=float(np.hypot(levels[0], added[0])))


def edm_euler_ancestral(
    process: EDM, steps: int, sigmas: Sigmas, options: EulerAncestral, begin: int = 0
) -> Table:
    """Build the table of Euler's method with fresh noise; see ``euler_ancestral``."""
    levels = edm_levels(process, steps, sigmas, "zero", begin)
    return rows_of_noise(process, levels[:-1], _ancestral(levels))


def edm_heun(process: EDM, steps: int, sigmas: Sigmas, options: EDMHeun, begin: int = 0) -> Table:
    """Build the table of Heun's method, 2 N - 1 evaluations (Karras et al. 2022, algorithms 1 and 2)."""
    levels = edm_levels(process, steps, sigmas, "zero", begin)
    raised, added = _churned(levels[:-1], steps, options)
    transition = _heun(raised, levels[1:])
    transition[1::2, X, NOISE] = added[1:]  # the last evaluation of a step
    sigma = np.empty(len(transition))
    sigma[::2], sigma[1::2] = raised, levels[1:-1]
    return rows_of_noise(process, sigma, transition, start=float(np.hypot(levels[0], added[0])))


def _churned(levels: Array, steps: int, options: EDMHeun) -> tuple[Array, Array]:
    """Return the sigmas (N,) to which churn raises these before a step, and the standard deviations (N,) it adds.

    Karras et al. 2022, algorithm 2, lines 3 to 6.  What it adds before a step is added at the end of the one before;
    before the first, the start has that much more noise.
    """
    for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
        if not (number := getattr(options, name)) >= 0:
            raise MmgenError(f"option {name!r} of the solver", got=number, wanted="at least 0")
    inside = (options.s_tmin <= levels) & (levels <= options.s_tmax)
    gamma = np.where(inside, min(options.s_churn / steps, 2**0.5 - 1), 0)
    raised = levels * (1 + gamma)
    return raised, options.s_noise * np.sqrt(raised**2 - levels**2)


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
