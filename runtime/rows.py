"""What the solver functions share: columns of a transition, and how x0 follows from a model's output."""

from typing import Any

import numpy as np

from mmgen.runtime.bundle import K
from mmgen.runtime.process import Flow, Prediction
from mmgen.runtime.schedules import Array
from mmgen.runtime.table import Table

X, X0, OUT, NOISE = 0, K, K + 1, K + 2  # columns of a transition; slots 1 to K - 1 are the solver's own


def no_transition(steps: int) -> Array:
    """Zeros (N, K, K + 3) to fill in."""
    return np.zeros((steps, K, K + 3))


def rows(
    timestep: Array,
    prediction: Array,
    transition: Array,
    *,
    input_scale: Array | float = 1.0,
    x0_limit: float = np.inf,
    initial_scale: float = 1.0,
) -> Table:
    """A float64 table from arrays (N, ...); one number where all rows have the same."""

    def each(value: Array | float) -> Any:
        return np.broadcast_to(np.asarray(value, np.float64), len(timestep)).copy()

    exact: dict[str, Any] = {"prediction": prediction, "transition": transition}
    return Table(each(timestep), each(input_scale), x0_limit=each(x0_limit), initial_scale=initial_scale, **exact)


def x0_from(prediction: Prediction, alpha: Array, sigma: Array) -> Array:
    """(N, 2) so that x0 = [0] x + [1] out, where x = alpha x0 + sigma noise.

    The v prediction is alpha noise - sigma x0 (Salimans and Ho 2022, appendix D).
    """
    match prediction:
        case "epsilon":
            return np.stack([1 / alpha, -sigma / alpha], 1)
        case "v":
            return np.stack([alpha, -sigma], 1)
        case "sample":
            return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], 1)


def noise_from(prediction: Prediction, alpha: Array, sigma: Array) -> Array:
    """(N, 2) so that noise = [0] x + [1] out."""
    match prediction:
        case "epsilon":
            return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], 1)
        case "v":
            return np.stack([sigma, alpha], 1)
        case "sample":
            return np.stack([1 / sigma, -alpha / sigma], 1)


def data_from(process: Flow, s: Array) -> Array:
    """(N, 2) so that data = [0] x + [1] out: data = x - s (noise - data)."""
    return np.stack([np.ones_like(s), -s * toward_noise(process)], 1)


def toward_noise(process: Flow) -> float:
    """1 or -1, which turns the denoiser's velocity into dx/ds, s the share of noise."""
    return 1.0 if process.velocity == "noise-data" else -1.0
