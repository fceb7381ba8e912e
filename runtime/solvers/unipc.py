"""UniPC: a multistep predictor, and a corrector that costs no evaluation."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.schedules import Array, FinalSigma, flow_levels, multistep_levels
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.transitions import OUT, X0, X, no_transition, noise_from, phi, rows_along, rows_at
from mmgen.runtime.storage.process import Diffusion, Flow
from mmgen.runtime.storage.schema import Sigmas
from mmgen.runtime.storage.tensors import K

NOISIEST = 1 - 1e-6  # share of noise that a flow starts at, where log(alpha / sigma) is still finite


@dataclass(frozen=True)
class FlowUniPC:
    """Options of ``unipc`` along a flow."""

    solver_order: Literal[1, 2, 3] = 2
    solver_type: Literal["bh1", "bh2"] = "bh2"  # B(h) of the paper: h, or exp(h) - 1
    lower_order_final: bool = True  # the last steps are of falling order
    disable_corrector: str = ""  # steps, from 0, whose end isn't corrected, such as "0,1"


@dataclass(frozen=True)
class UniPC(FlowUniPC):
    """Options of ``unipc`` on a diffusion."""

    predict_x0: bool = True  # extrapolates predicted data; False: predicted noise
    final_sigmas_type: FinalSigma = "zero"  # where the last step ends: no noise, or the least noise of training


def unipc(process: Diffusion, steps: int, sigmas: Sigmas, options: UniPC, begin: int = 0) -> Table:
    """Build the table of UniPC on a diffusion."""
    levels, now = multistep_levels(
        process, steps, sigmas, options.final_sigmas_type, rounds_cosine=True, begin=begin
    )
    alpha = 1 / np.sqrt(1 + levels**2)
    sigma = levels * alpha
    model = np.zeros((len(now), K + 3))
    if options.predict_x0:
        model[:, X0] = 1
    else:
        model[:, [X, OUT]] = noise_from(process.prediction, alpha[:-1], sigma[:-1])
    transition = _transition(alpha, sigma, model, options, options.predict_x0, begin)
    return rows_at(process, now, alpha[:-1], sigma[:-1], transition)


def flow_unipc(process: Flow, steps: int, sigmas: Sigmas, options: FlowUniPC, begin: int = 0) -> Table:
    """Build the table of UniPC along a flow, alpha = 1 - s and sigma = s, which starts at ``NOISIEST`` at most."""
    levels = flow_levels(process, steps, sigmas, begin).clip(max=NOISIEST)
    model = np.zeros((len(levels) - 1, K + 3))
    model[:, X0] = 1
    return rows_along(process, levels[:-1], _transition(1 - levels, levels, model, options, True, begin))


def _transition(
    alpha: Array, sigma: Array, model: Array, options: FlowUniPC, predict_x0: bool, begin: int
) -> Array:
    """Return transitions (N, K, K + 3) of UniPC (Zhao et al. 2023, corollary 3.2 and theorem 3.1).

    Slot 0 is the predicted sample at which the denoiser is evaluated, slots 1 to 3 are the last three model outputs.
    The corrected sample of the step before needs no slot: prediction and correction weigh it alike, so that a row turns
    one into the other by the difference of their weights on the model outputs.

    Args:
        alpha: signal (N + 1,) at the ends of the steps.
        sigma: noise (N + 1,); 0 at the end if nothing is left.
        model: the model output (N, K + 3) that is kept in the slots, in columns of a transition: x0 or noise.
        begin: how many steps were left out before these.
    """
    steps = len(model)
    disabled = _steps(options.disable_corrector)
    with np.errstate(divide="ignore"):
        lambdas = np.log(alpha) - np.log(sigma)  # inf at no noise
    target, rest, sign = (alpha, sigma, -1) if predict_x0 else (sigma, alpha, 1)
    stored = np.eye(K + 3)[1:K]  # slots 1 to 3 as they are
    transition = no_transition(steps)
    correction = np.zeros(4)  # of the prediction: weights on this model output and on slots 1 to 3
    for i in range(steps):
        outputs = np.vstack([model[i], stored])
        sample = np.eye(K + 3)[X] + correction @ outputs
        ends = sigma[i + 1] == 0  # an infinite increase of lambda: only the first order is finite
        order = min(options.solver_order, i + 1, steps - i if options.lower_order_final else steps, 1 if ends else 3)
        nodes = lambdas[i + 1 - order : i + 2][::-1]  # of the next sample, this one, and those before
        kept = rest[i + 1] / rest[i]
        predict, correct = _weights(nodes, target[i + 1] - kept * target[i], target[i + 1], sign, options.solver_type)
        transition[i, X] = kept * sample + predict @ outputs
        transition[i, 1:] = outputs[:3]
        correction = np.zeros(4) if begin + i in disabled else correct - np.append(0, predict[:3])
    return transition


def _weights(nodes: Array, first: float, target: float, sign: int, solver_type: str) -> tuple[Array, Array]:
    """Return what a step adds, as weights on model outputs: prediction (4,) and correction (4,).

    With h the step, r_k where output m_k was made in units of h from m_0, z = sign h, and D_k = (m_k - m_0) / r_k:

        prediction = first m_0 - target B(z) sum_k p_k D_k
        correction = the same with c_k for p_k, and one more term for the output at the step's end, r = 1

    c solves sum_k c_k r_k^(n - 1) = n! z phi_(n + 1)(z) / B(z) for n from 1, p does the same with one equation less;
    but p is 1/2 in second order, c is 1/2 in first.

    Args:
        nodes: lambdas (order + 1,) of the step's end, its start, and the outputs before.
        first: what is left of m_0 in first order.
        target: signal or noise at the step's end.
        sign: -1 where the outputs are data, 1 where they are noise.
        solver_type: B(z) is z for ``bh1``, exp(z) - 1 for ``bh2``.

    Returns:
        Prediction on (m_0, m_1, m_2, m_3), correction on (m_end, m_0, m_1, m_2).
    """
    order = 1 + int(np.cumprod(np.diff(nodes[1:]) != 0).sum())  # a timestep visited twice has no slope
    nodes = nodes[: order + 1]
    h = nodes[0] - nodes[1]
    predict, correct = np.zeros(4), np.zeros(4)
    predict[0] = correct[1] = first
    if h == 0 or np.isinf(h):  # no step, or one to the end
        return predict, correct
    z = sign * h
    b_h = z if solver_type == "bh1" else math.expm1(z)
    r = np.append((nodes[2:] - nodes[1]) / h, 1.0)
    powers = np.vander(r, increasing=True).T
    sums = np.array([math.factorial(n) * z * phi(n + 1, z) / b_h for n in range(1, order + 1)])
    p = np.full(1, 0.5) if order == 2 else np.linalg.solve(powers[:-1, :-1], sums[:-1])
    c = np.full(1, 0.5) if order == 1 else np.linalg.solve(powers, sums)
    for weights, rho, before in ((predict, p, 0), (correct, c[:-1], 1)):
        terms = -target * b_h * rho / r[:-1]
        weights[before] -= terms.sum()
        weights[before + 1 : before + order] = terms
    correct[0] = -target * b_h * c[-1]
    correct[1] -= correct[0]
    return predict, correct


def _steps(listed: str) -> set[int]:
    try:
        return {int(step) for step in listed.split(",")} if listed else set()
    except ValueError:
        raise MmgenError(
            "option 'disable_corrector' of solver 'unipc'", got=repr(listed), wanted="whole numbers such as '0,1'"
        ) from None
