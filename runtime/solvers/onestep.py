"""One-step solvers, which go from one level of noise to another without history: DDPM, DDIM, consistency."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.schedules import Array, alphas_cumprod, check_steps, edm_sigmas, timesteps
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.transitions import (
    NOISE,
    OUT,
    X0,
    X,
    limit_of,
    no_transition,
    noise_from,
    rows_at,
    rows_of_noise,
)
from mmgen.runtime.storage.process import EDM, Diffusion
from mmgen.runtime.storage.schema import Sigmas


@dataclass(frozen=True)
class DDPM:
    """Options of ``ddpm``.  Learned variances aren't supported: a row of the table can't depend on x."""

    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] = "fixed_small"
    # fixed_small: the posterior's variance, the lower bound; fixed_small_log equals it up to a logarithm.
    # fixed_large: the forward step's variance, the upper bound.


@dataclass(frozen=True)
class DDIM:
    """Options of ``ddim``."""

    eta: float = 0.0  # fresh noise: 0 none, 1 as much as DDPM


@dataclass(frozen=True)
class Consistency:
    """Options of ``consistency``: none."""


def ddpm(process: Diffusion, steps: int, sigmas: Sigmas, options: DDPM, begin: int = 0) -> Table:
    """Build the table of ancestral sampling (Ho et al. 2020, eq. 6, 7 and 11); x0 is clamped if the process says so.

    With a and a' the shares of signal at a timestep and the next that is visited, alpha = a / a', beta = 1 - alpha:

        x' = sqrt(a') beta / (1 - a) x0 + sqrt(alpha) (1 - a') / (1 - a) x + sqrt(variance) noise
        variance = beta (1 - a') / (1 - a)  (fixed_small)  or  beta  (fixed_large)

    The last step ends at a' = 1 and has no noise where it starts at timestep 0; fixed_large has some elsewhere.
    """
    now, a = visit("ddpm", process, steps, sigmas, begin)
    a_next = np.append(a[1:], 1.0)
    alpha = a / a_next
    large = 1 - alpha
    variance = large if options.variance_type == "fixed_large" else large * (1 - a_next) / (1 - a)
    transition = no_transition(len(now))
    transition[:, X, X] = np.sqrt(alpha) * (1 - a_next) / (1 - a)
    transition[:, X, X0] = np.sqrt(a_next) * large / (1 - a)
    transition[:, X, NOISE] = np.sqrt(variance) * (now > 0)
    return rows_at(process, now, np.sqrt(a), np.sqrt(1 - a), transition, x0_limit=limit_of(process))


def ddim(process: Diffusion, steps: int, sigmas: Sigmas, options: DDIM, begin: int = 0) -> Table:
    """Build the table of DDIM (Song et al. 2021, eq. 12 and 16); x0 is clamped if the process says so.

    The clamp acts on x0 alone: the direction to the next x keeps the unclamped prediction.  A step goes from timestep
    t to t - T // N whatever the spacing is, as in diffusers.
    """
    if not 0 <= options.eta <= 1:
        raise MmgenError("option 'eta' of solver 'ddim'", got=options.eta, wanted="0 to 1")
    now, a = visit("ddim", process, steps, sigmas, begin)
    a_next = shares_after(process, now - process.train_timesteps // steps)
    alpha, sigma = np.sqrt(a), np.sqrt(1 - a)
    deviation = options.eta * np.sqrt((1 - a_next) / (1 - a) * (1 - a / a_next))
    direction = np.sqrt(np.maximum(1 - a_next - deviation**2, 0))
    noise = noise_from(process.prediction, alpha, sigma)
    transition = no_transition(len(now))
    transition[:, X, X] = direction * noise[:, 0]
    transition[:, X, X0] = np.sqrt(a_next)
    transition[:, X, OUT] = direction * noise[:, 1]
    transition[:, X, NOISE] = deviation
    return rows_at(process, now, alpha, sigma, transition, x0_limit=limit_of(process))


def consistency(process: EDM, steps: int, sigmas: Sigmas, options: Consistency, begin: int = 0) -> Table:
    """Build the table of sampling from a consistency model (Song et al. 2023, algorithm 1).

    Each step takes the predicted x0, and adds noise to it up to the next sigma, of which it has sigma_min already:
    sqrt(sigma'^2 - sigma_min^2).  The sigmas are the first N of N + 1 down to sigma_min, at which x0 is x.
    """
    levels = edm_sigmas(process, check_steps(steps) + 1, sigmas)[begin:]
    transition = no_transition(len(levels) - 1)
    transition[:, X, X0] = 1
    transition[:-1, X, NOISE] = np.sqrt(levels[1:-1] ** 2 - process.sigma_min**2)
    return rows_of_noise(process, levels[:-1], transition)


def visit(solver: str, process: Diffusion, steps: int, sigmas: Sigmas, begin: int) -> tuple[Array, Array]:
    """Return the whole timesteps (N,) that a solver visits from step ``begin``, and the shares of signal (N,) there."""
    if sigmas != "schedule":
        raise MmgenError(f"sigmas with solver {solver!r}", got=repr(sigmas), wanted="'schedule'")
    now = timesteps(process, steps).round()[begin:]
    a = alphas_cumprod(process)[now.astype(np.int64)]
    if process.prediction == "epsilon" and not a.all():
        raise MmgenError(
            f"{solver!r} starts at pure noise (zero_terminal_snr), where prediction 'epsilon' says nothing of x0",
            remedy="use solver 'euler' or 'dpmpp-2m', or a spacing that leaves the last training timestep out",
        )
    return now, a


def shares_after(process: Diffusion, after: Array) -> Array:
    """Return the shares of signal (N,) at whole timesteps (N,); a timestep below 0 is the end."""
    shares = alphas_cumprod(process)
    last = 1.0 if process.final_alpha_one else shares[0]
    return np.where(after >= 0, shares[after.clip(min=0).astype(np.int64)], last)
