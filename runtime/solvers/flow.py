"""Solvers along a straight path from noise to data: Euler, Heun."""

from dataclasses import dataclass

import numpy as np

from mmgen.runtime.solvers.schedules import flow_levels
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.transitions import NOISE, OUT, X0, X, no_transition, rows_along, toward_noise, twice
from mmgen.runtime.storage.process import Flow
from mmgen.runtime.storage.schema import Sigmas


@dataclass(frozen=True)
class FlowEuler:
    """Options of ``flow-euler``."""

    stochastic_sampling: bool = False  # each step noises the predicted data anew


@dataclass(frozen=True)
class FlowHeun:
    """Options of ``flow-heun``: none."""


def flow_euler(process: Flow, steps: int, sigmas: Sigmas, options: FlowEuler, begin: int = 0) -> Table:
    """Euler's method along a flow, x' = x + (s' - s) dx/ds (Liu et al. 2023, algorithm 1).

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
    """Heun's method along a flow (Karras et al. 2022, algorithm 1, with dx/ds), 2 N - 1 rows; the last step is Euler's.

    Between its two rows, slot 1 holds x + (s' - s) / 2 dx/ds.
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
