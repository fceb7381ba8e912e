"""Solvers that use what earlier steps predicted: DPM-Solver++."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmgen.runtime.process import Diffusion, Flow
from mmgen.runtime.rows import X0, X, data_from, no_transition, rows, x0_from
from mmgen.runtime.schedules import Array, FinalSigma, Sigmas, flow_levels, flow_timesteps, multistep_levels
from mmgen.runtime.table import Table


@dataclass(frozen=True)
class FlowDPM:
    """Options of ``dpmpp-2m`` along a flow."""

    solver_order: Literal[1, 2] = 2  # 1 is DDIM
    solver_type: Literal["midpoint", "heun"] = "midpoint"  # form of the second-order term


@dataclass(frozen=True)
class DPM(FlowDPM):
    """Options of ``dpmpp-2m`` on a diffusion."""

    lower_order_final: bool = True  # the last step is first order if there are fewer than 15
    euler_at_final: bool = False  # the last step is first order
    final_sigmas_type: FinalSigma = "zero"  # where it ends: the least noise of training; or none, then first order
    lambda_min_clipped: float = -np.inf  # the noisiest timestep has at least this log(alpha / sigma)


def dpmpp_2m(process: Diffusion, steps: int, sigmas: Sigmas, options: DPM) -> Table:
    """Multistep DPM-Solver++ (``data_prediction``) on a diffusion."""
    levels, now = multistep_levels(process, steps, sigmas, options.final_sigmas_type, options.lambda_min_clipped)
    alpha = 1 / np.sqrt(1 + levels**2)
    sigma = levels * alpha
    first_order_last = (
        options.euler_at_final or (options.lower_order_final and len(now) < 15) or options.final_sigmas_type == "zero"
    )
    transition = data_prediction(alpha, sigma, options, first_order_last)
    return rows(now, x0_from(process.prediction, alpha[:-1], sigma[:-1]), transition)


def flow_dpmpp_2m(process: Flow, steps: int, sigmas: Sigmas, options: FlowDPM) -> Table:
    """Multistep DPM-Solver++ (``data_prediction``) along a flow: alpha = 1 - s, sigma = s."""
    levels = flow_levels(process, steps, sigmas)
    transition = data_prediction(1 - levels, levels, options, first_order_last=True)
    return rows(flow_timesteps(process, levels[:-1]), data_from(process, levels[:-1]), transition)


def data_prediction(alpha: Array, sigma: Array, options: FlowDPM, first_order_last: bool) -> Array:
    """Transitions (N, K, K + 3) of DPM-Solver++, first and second order (Lu et al. 2022, eq. 9 and algorithm 2).

    With lambda = log(alpha / sigma), h its increase over the step, m the predicted x0, and h_1 and m_1 those of the
    step before, kept in slot 1:

        x' = (sigma' / sigma) x + alpha' (1 - exp(-h)) m + w (h / h_1) (m - m_1)
        w  = alpha' (1 - exp(-h)) / 2  (midpoint)  or  alpha' ((exp(-h) - 1) / h + 1)  (heun)

    Args:
        alpha: signal (N + 1,) at the ends of the steps; 0 at pure noise.
        sigma: noise (N + 1,); 0 at the end if nothing is left.
        options: order and type.
        first_order_last: the last step leaves the term in w out.
    """
    steps = len(alpha) - 1
    with np.errstate(divide="ignore"):
        lambdas = np.log(alpha) - np.log(sigma)  # -inf at pure noise, inf at none
    transition = no_transition(steps)
    for i in range(steps):
        h = lambdas[i + 1] - lambdas[i]
        m = -alpha[i + 1] * np.expm1(-h)
        slope = 0.0
        if options.solver_order == 2 and i > 0 and not (i == steps - 1 and first_order_last):
            h_1 = lambdas[i] - lambdas[i - 1]
            if h != 0 and h_1 != 0:  # a timestep visited twice has no slope
                w = m / 2 if options.solver_type == "midpoint" else alpha[i + 1] * (np.expm1(-h) / h + 1)
                slope = w * h / h_1
        transition[i, X, X] = sigma[i + 1] / sigma[i]
        transition[i, X, X0] = m + slope
        transition[i, X, 1] = -slope
        transition[i, 1, X0] = 1
    return transition
