"""DPM-Solver++: multistep in log(alpha / sigma), from predicted data; with fresh noise too."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmgen.runtime.solvers.schedules import Array, FinalSigma, edm_levels, flow_levels, multistep_levels
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.transitions import NOISE, X0, X, no_transition, phi, rows_along, rows_at, rows_of_noise
from mmgen.runtime.storage.process import EDM, Diffusion, Flow
from mmgen.runtime.storage.schema import Sigmas

Order = Literal[1, 2, 3]
FEW = 15  # below this many steps, lower_order_final acts


@dataclass(frozen=True)
class FlowDPM:
    """Options of ``dpmpp-3m`` along a flow."""

    solver_type: Literal["midpoint", "heun"] = "midpoint"  # form of the term in second-order steps
    lower_order_final: bool = True  # with fewer than 15 steps, the last but one is second order and the last first


@dataclass(frozen=True)
class FlowDPM2(FlowDPM):
    """Options of ``dpmpp-2m`` and ``dpmpp-sde-2m`` along a flow."""

    solver_order: Literal[1, 2] = 2  # 1 is DDIM


@dataclass(frozen=True)
class EDMDPM(FlowDPM):
    """Options of ``dpmpp-3m`` on an EDM process."""

    euler_at_final: bool = False  # the last step is first order
    final_sigmas_type: FinalSigma = "zero"  # where it ends: the least noise of training; or none, then first order


@dataclass(frozen=True)
class EDMDPM2(EDMDPM):
    """Options of ``dpmpp-2m`` and ``dpmpp-sde-2m`` on an EDM process."""

    solver_order: Literal[1, 2] = 2  # 1 is Euler's method in sigma


@dataclass(frozen=True)
class DPM(EDMDPM):
    """Options of ``dpmpp-3m`` on a diffusion."""

    lambda_min_clipped: float = -np.inf  # the noisiest timestep has at least this log(alpha / sigma)


@dataclass(frozen=True)
class DPM2(DPM):
    """Options of ``dpmpp-2m`` and ``dpmpp-sde-2m`` on a diffusion."""

    solver_order: Literal[1, 2] = 2  # 1 is DDIM


def dpmpp_2m(process: Diffusion, steps: int, sigmas: Sigmas, options: DPM2, begin: int = 0) -> Table:
    """Build the table of multistep DPM-Solver++ on a diffusion, second order."""
    return _diffusion(process, steps, sigmas, options, begin, options.solver_order, sde=False)


def dpmpp_3m(process: Diffusion, steps: int, sigmas: Sigmas, options: DPM, begin: int = 0) -> Table:
    """Build the table of multistep DPM-Solver++ on a diffusion, third order."""
    return _diffusion(process, steps, sigmas, options, begin, 3, sde=False)


def dpmpp_sde_2m(process: Diffusion, steps: int, sigmas: Sigmas, options: DPM2, begin: int = 0) -> Table:
    """Build the table of multistep SDE-DPM-Solver++ on a diffusion, second order."""
    return _diffusion(process, steps, sigmas, options, begin, options.solver_order, sde=True)


def flow_dpmpp_2m(process: Flow, steps: int, sigmas: Sigmas, options: FlowDPM2, begin: int = 0) -> Table:
    """Build the table of multistep DPM-Solver++ along a flow, second order."""
    return _flow(process, steps, sigmas, options, begin, options.solver_order, sde=False)


def flow_dpmpp_3m(process: Flow, steps: int, sigmas: Sigmas, options: FlowDPM, begin: int = 0) -> Table:
    """Build the table of multistep DPM-Solver++ along a flow, third order."""
    return _flow(process, steps, sigmas, options, begin, 3, sde=False)


def flow_dpmpp_sde_2m(process: Flow, steps: int, sigmas: Sigmas, options: FlowDPM2, begin: int = 0) -> Table:
    """Build the table of multistep SDE-DPM-Solver++ along a flow, second order."""
    return _flow(process, steps, sigmas, options, begin, options.solver_order, sde=True)


def edm_dpmpp_2m(process: EDM, steps: int, sigmas: Sigmas, options: EDMDPM2, begin: int = 0) -> Table:
    """Build the table of multistep DPM-Solver++ on an EDM process, second order."""
    return _edm(process, steps, sigmas, options, begin, options.solver_order, sde=False)


def edm_dpmpp_3m(process: EDM, steps: int, sigmas: Sigmas, options: EDMDPM, begin: int = 0) -> Table:
    """Build the table of multistep DPM-Solver++ on an EDM process, third order."""
    return _edm(process, steps, sigmas, options, begin, 3, sde=False)


def edm_dpmpp_sde_2m(process: EDM, steps: int, sigmas: Sigmas, options: EDMDPM2, begin: int = 0) -> Table:
    """Build the table of multistep SDE-DPM-Solver++ on an EDM process, second order."""
    return _edm(process, steps, sigmas, options, begin, options.solver_order, sde=True)


def _diffusion(
    process: Diffusion, steps: int, sigmas: Sigmas, options: DPM, begin: int, order: Order, *, sde: bool
) -> Table:
    levels, now = multistep_levels(
        process,
        steps,
        sigmas,
        options.final_sigmas_type,
        lambda_min_clipped=options.lambda_min_clipped,
        begin=begin,
    )
    alpha = 1 / np.sqrt(1 + levels**2)
    sigma = levels * alpha
    last = options.euler_at_final or levels[-1] == 0
    orders = _orders(len(now), begin, order, options, first_order_last=last)
    transition = data_prediction(alpha, sigma, orders, options.solver_type, sde=sde)
    return rows_at(process, now, alpha[:-1], sigma[:-1], transition)


def _edm(
    process: EDM, steps: int, sigmas: Sigmas, options: EDMDPM, begin: int, order: Order, *, sde: bool
) -> Table:
    """Build a table on an EDM process, where alpha is 1."""
    levels = edm_levels(process, steps, sigmas, options.final_sigmas_type, begin)
    last = options.euler_at_final or levels[-1] == 0
    orders = _orders(len(levels) - 1, begin, order, options, first_order_last=last)
    transition = data_prediction(np.ones_like(levels), levels, orders, options.solver_type, sde=sde)
    return rows_of_noise(process, levels[:-1], transition)


def _flow(
    process: Flow, steps: int, sigmas: Sigmas, options: FlowDPM, begin: int, order: Order, *, sde: bool
) -> Table:
    """Build a table along a flow; on a straight path alpha is 1 - s and sigma is s."""
    levels = flow_levels(process, steps, sigmas, begin)
    orders = _orders(len(levels) - 1, begin, order, options, first_order_last=True)
    transition = data_prediction(1 - levels, levels, orders, options.solver_type, sde=sde)
    return rows_along(process, levels[:-1], transition)


def _orders(steps: int, begin: int, order: Order, options: FlowDPM, *, first_order_last: bool) -> list[int]:
    """Return each step's order: as far as there is history, and lower at the end; ``begin`` steps were left out."""
    few = options.lower_order_final and begin + steps < FEW
    orders = [min(order, i + 1) for i in range(steps)]
    if few and steps > 1:
        orders[-2] = min(orders[-2], 2)
    if few or first_order_last:
        orders[-1] = 1
    return orders


def data_prediction(alpha: Array, sigma: Array, orders: list[int], solver_type: str, *, sde: bool) -> Array:
    """Return transitions (N, K, K + 3) of DPM-Solver++ and SDE-DPM-Solver++ (Lu et al. 2022, algorithm 2, section 5).

    With lambda = log(alpha / sigma), h its increase over the step, m the predicted x0, and h_1, m_1 and h_2, m_2 those
    of the steps before, kept in slots 1 and 2:

        x' = (sigma' / sigma) x + alpha' h (phi_1 m + phi_2 D_1 + phi_3 D_2)        phi_k = phi_k(-h)

    D_1 is h times the first derivative of m by lambda, from divided differences.  In second order D_1 is
    h / h_1 (m - m_1) and D_2 is 0, with phi_1 / 2 for phi_2 in type midpoint.  In third order D_2 is half of h^2 times
    the second derivative.  That half is what the authors' program and diffusers use; with it the error falls only with
    the square of the step size, though it is smaller than second order's.

    The SDE takes 2 h for h, except in D_1; x shrinks by another exp(-h), and noise of standard deviation
    sigma' sqrt(1 - exp(-2 h)) replaces what it lost.

    Args:
        alpha: signal (N + 1,) at the ends of the steps; 0 at pure noise.
        sigma: noise (N + 1,); 0 at the end if nothing is left.
        orders: of each step, 1 to 3; an order above 1 doesn't end at sigma 0.
        solver_type: form of second-order steps, ``midpoint`` or ``heun``.
        sde: fresh noise; orders are 1 or 2.
    """
    steps = len(alpha) - 1
    with np.errstate(divide="ignore"):
        lambdas = np.log(alpha) - np.log(sigma)  # -inf at pure noise, inf at none
    increase = np.diff(lambdas)
    transition = no_transition(steps)
    for i, order in enumerate(orders):
        h = increase[i]
        span = 2 * h if sde else h
        row = transition[i, X]
        row[X] = sigma[i + 1] / sigma[i] * (np.exp(-h) if sde else 1)
        row[X0] = -alpha[i + 1] * np.expm1(-span)
        row[NOISE] = sigma[i + 1] * np.sqrt(max(-np.expm1(-2 * h), 0)) if sde else 0
        slopes = increase[i - order + 1 : i][::-1]  # h_1, h_2
        if h != 0 and slopes.all():  # a timestep visited twice has no slope
            differences = _differences(h, slopes)
            if order == 2:
                weights = [row[X0] / 2 if solver_type == "midpoint" else alpha[i + 1] * span * phi(2, -span)]
            else:
                weights = [alpha[i + 1] * span * phi(k, -span) for k in range(2, order + 1)]
            for weight, difference in zip(weights, differences, strict=True):
                row[[X0, 1, 2]] += weight * difference
        transition[i, 1, X0] = 1
        transition[i, 2, 1] = 1
    return transition


def _differences(h: float, slopes: Array) -> list[Array]:
    """Return D_1 and D_2, as far as there are slopes, as weights (3,) of m, m_1 and m_2."""
    if len(slopes) == 0:
        return []
    first = h / slopes[0] * np.array([1.0, -1.0, 0.0])
    if len(slopes) == 1:
        return [first]
    both = slopes[0] + slopes[1]
    change = first - h / slopes[1] * np.array([0.0, 1.0, -1.0])
    return [first + slopes[0] / both * change, h / both * change]
