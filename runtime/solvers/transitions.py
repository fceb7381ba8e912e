"""What the solver functions share: columns of a transition, and how x0 follows from a model's output."""

import math
from typing import Any

import numpy as np

from mmgen.runtime.solvers.schedules import Array, flow_timesteps
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.storage.process import EDM, Diffusion, Flow, Prediction
from mmgen.runtime.storage.tensors import K

X, X0, OUT, NOISE = 0, K, K + 1, K + 2  # columns of a transition; slots 1 to K - 1 are the solver's own


def no_transition(steps: int) -> Array:
    """Return zeros (N, K, K + 3) to fill in."""
    return np.zeros((steps, K, K + 3))


def rows(
    timestep: Array,
    prediction: Array,
    transition: Array,
    level: Array,
    *,
    input_scale: Array | float = 1.0,
    x0_limit: float = np.inf,
    initial_scale: float = 1.0,
) -> Table:
    """Build a float64 table from arrays (N, ...), or from one number where all rows have the same."""

    def each(value: Array | float) -> Any:
        return np.broadcast_to(np.asarray(value, np.float64), len(timestep)).copy()

    exact: dict[str, Any] = {"prediction": prediction, "transition": transition, "level": level}
    return Table(each(timestep), each(input_scale), x0_limit=each(x0_limit), initial_scale=initial_scale, **exact)


def rows_at(
    process: Diffusion, now: Array, alpha: Array, sigma: Array, transition: Array, *, x0_limit: float = np.inf
) -> Table:
    """Build a table whose state is alpha x0 + sigma noise, as the denoiser sees it."""
    prediction = x0_from(process.prediction, alpha, sigma)
    return rows(now, prediction, transition, np.stack([alpha, sigma], 1), x0_limit=x0_limit)


def rows_in_sigma(
    process: Diffusion, now: Array, sigma: Array, transition: Array, *, x0_limit: float = np.inf
) -> Table:
    """Build a table whose state is x / alpha = x0 + sigma noise; the denoiser sees it scaled back by alpha.

    Karras et al. 2022, table 1, column VE; the state is of variance 1 + sigma^2 over unit data.
    """
    alpha = 1 / np.sqrt(1 + sigma**2)
    prediction = x0_from(process.prediction, alpha, sigma * alpha)
    prediction[:, 0] *= alpha  # of the state, not of what the denoiser sees
    highest = float(sigma.max())
    initial = (1 + highest**2) ** 0.5 if process.spacing == "leading" else highest
    level = np.stack([np.ones_like(sigma), sigma], 1)
    return rows(now, prediction, transition, level, input_scale=alpha, x0_limit=x0_limit, initial_scale=initial)


def rows_along(process: Flow, s: Array, transition: Array) -> Table:
    """Build a table along a flow, at noise shares s (N,)."""
    return rows(flow_timesteps(process, s), data_from(process, s), transition, np.stack([1 - s, s], 1))


def rows_of_noise(process: EDM, sigma: Array, transition: Array, *, start: float | None = None) -> Table:
    """Build a table whose state is x0 + sigma noise, at sigmas (N,); x0 is clamped if the process says so.

    Args:
        start: standard deviation of the noise in the state that the first row begins with; None: its sigma.
    """
    noise = sigma.copy()
    noise[0] = sigma[0] if start is None else start
    told = process.timestep_scale * (sigma if process.conditioned_on == "sigma" else np.log(sigma))
    scaled = process.prediction not in ("sample", "epsilon")
    return rows(
        told,
        _denoised(process, sigma),
        transition,
        np.stack([np.ones_like(noise), noise], 1),
        input_scale=1 / np.hypot(sigma, process.sigma_data) if scaled else 1.0,
        x0_limit=limit_of(process),
        initial_scale=float(noise[0]),
    )


def _denoised(process: EDM, sigma: Array) -> Array:
    """Return (N, 2) so that x0 = [0] x + [1] out: c_skip and c_out of Karras et al. 2022, table 1, and of their kin."""
    data, width = process.sigma_data, np.hypot(sigma, process.sigma_data)
    match process.prediction:
        case "sample":
            return np.stack([np.zeros_like(sigma), np.ones_like(sigma)], 1)
        case "epsilon":
            return np.stack([np.ones_like(sigma), -sigma], 1)
        case "preconditioned":
            return np.stack([(data / width) ** 2, sigma * data / width], 1)
        case "v":
            return np.stack([(data / width) ** 2, -sigma * data / width], 1)
        case "consistency":
            above = sigma - process.sigma_min
            return np.stack([data**2 / (above**2 + data**2), above * data / width], 1)


def twice(values: Array) -> Array:
    """Repeat each value but the first (2 N - 1,), as two-stage solvers visit them."""
    return np.repeat(values, 2, axis=0)[1:]


def limit_of(process: Diffusion | EDM) -> float:
    """Return the bound that x0 is clamped to; infinity: it isn't clamped."""
    return np.inf if process.clip is None else process.clip


def phi(k: int, z: float) -> float:
    """Compute phi_k(z) = (phi_(k-1)(z) - 1 / (k - 1)!) / z, phi_0 = exp (Hochbruck and Ostermann 2010)."""
    if abs(z) < 1:  # where the recursion would cancel
        return math.fsum(z**j / math.factorial(j + k) for j in range(20))
    return math.exp(z) if k == 0 else (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def x0_from(prediction: Prediction, alpha: Array, sigma: Array) -> Array:
    """Return (N, 2) so that x0 = [0] x + [1] out, where x = alpha x0 + sigma noise.

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
    """Return (N, 2) so that noise = [0] x + [1] out."""
    match prediction:
        case "epsilon":
            return np.stack([np.zeros_like(alpha), np.ones_like(alpha)], 1)
        case "v":
            return np.stack([sigma, alpha], 1)
        case "sample":
            return np.stack([1 / sigma, -alpha / sigma], 1)


def data_from(process: Flow, s: Array) -> Array:
    """Return (N, 2) so that data = [0] x + [1] out: data = x - s (noise - data)."""
    return np.stack([np.ones_like(s), -s * toward_noise(process)], 1)


def toward_noise(process: Flow) -> float:
    """Return 1 or -1, the factor that turns the denoiser's velocity into dx/ds, s the share of noise."""
    return 1.0 if process.velocity == "noise-data" else -1.0
