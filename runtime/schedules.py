"""Noise levels and timesteps that a solver goes through, in float64.

These are diffusers' schedules in every rounding, offset and end point, in which
its schedulers differ from each other: a model sampled with the wrong ones is
subtly worse.  Left out are accidents of its float32: a timestep may come out
one lower there, and trailing spacing one step too long (61 of 1000).
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Diffusion, Flow

Array = NDArray[np.floating[Any]]
Sigmas = Literal["schedule", "karras", "exponential"]
FinalSigma = Literal["zero", "sigma_min"]

SMALLEST_ALPHA = 2.0**-24  # stands for a zero at the end of alphas_cumprod where a finite sigma is needed


def betas(process: Diffusion) -> Array:
    """Variances (T,) that training adds step by step, before any rescaling to zero terminal SNR.

    linear: Ho et al. 2020, section 4.  scaled_linear: Rombach et al. 2022, linear in sqrt(beta).
    squaredcos_cap_v2: Nichol and Dhariwal 2021, eq. 17, capped at 0.999.
    """
    count = process.train_timesteps
    if process.betas is not None:
        if len(process.betas) != count:
            raise MmgenError("explicit betas", got=f"{len(process.betas)} values", wanted=f"train_timesteps = {count}")
        return np.array(process.betas, np.float64)
    match process.beta_schedule:
        case "linear":
            return np.linspace(process.beta_start, process.beta_end, count)
        case "scaled_linear":
            return np.square(np.linspace(process.beta_start**0.5, process.beta_end**0.5, count))
        case "squaredcos_cap_v2":
            bar = np.square(np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2))
            return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def alphas_cumprod(process: Diffusion) -> Array:
    """Shares of signal variance (T,), falling; the last is exactly 0 with zero terminal SNR.

    The rescaling is algorithm 1 of Lin et al. 2023.

    Raises:
        MmgenError: the betas don't make a diffusion: the shares must fall from below 1 to 0 or more.
    """
    if process.train_timesteps < 1:
        raise MmgenError("train_timesteps", got=process.train_timesteps, wanted="at least 1")
    shares = np.cumprod(1 - betas(process))
    if process.zero_terminal_snr:
        root = np.sqrt(shares)
        if not root[0] > root[-1]:
            raise MmgenError("zero_terminal_snr", got=f"{len(root)} timesteps", wanted="at least 2")
        shares = np.square((root - root[-1]) * (root[0] / (root[0] - root[-1])))
    if not (shares[0] < 1 and np.all(np.diff(shares) < 0) and shares[-1] >= 0):
        raise MmgenError("the process's betas", got="values outside (0, 1)", wanted="every beta between 0 and 1")
    return shares


def training_sigmas(process: Diffusion) -> Array:
    """Noise-to-signal ratios (T,) sqrt((1 - a) / a) at the training timesteps; the last is finite."""
    shares = alphas_cumprod(process)
    if shares[-1] == 0:
        shares[-1] = SMALLEST_ALPHA
    return np.sqrt((1 - shares) / shares)


def check_steps(steps: int) -> None:
    """Raises MmgenError unless ``steps`` is a positive integer."""
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise MmgenError("steps", got=repr(steps), wanted="a whole number, at least 1")


def timesteps(process: Diffusion, steps: int) -> Array:
    """Training timesteps (N,) that one-step solvers visit, from noisy to clean.

    Table 2 of Lin et al. 2023.  With linspace they lie between whole numbers: Euler interpolates there, DDIM rounds.
    """
    check_steps(steps)
    count = process.train_timesteps
    if steps > count:
        raise _too_many(steps, count)
    visited: Array
    match process.spacing:
        case "linspace":
            visited = np.linspace(0, count - 1, steps)[::-1]
        case "leading":
            visited = (np.arange(steps) * (count // steps))[::-1] + float(process.steps_offset)
        case "trailing":
            visited = _trailing(count, count, steps)
    return _in_training(visited, process, steps)


def multistep_timesteps(process: Diffusion, steps: int, lambda_min_clipped: float = -np.inf) -> Array:
    """Training timesteps (N,), whole numbers, that multistep solvers (DPM-Solver) visit, from noisy to clean.

    Unlike ``timesteps``, N intervals are laid out and their noisy ends are taken, so that timestep 0 isn't visited.
    The noisiest timestep is the first whose log signal-to-noise ratio is at least ``lambda_min_clipped``; with
    trailing spacing that leaves fewer than N.
    """
    check_steps(steps)
    log_snr = -np.log(training_sigmas(process))
    last = process.train_timesteps - int(np.searchsorted(log_snr[::-1], lambda_min_clipped))  # one past the noisiest
    leading = process.spacing == "leading"
    if steps + leading > last:
        raise _too_many(steps, last - leading)
    visited: Array
    match process.spacing:
        case "linspace":
            visited = np.linspace(0, last - 1, steps + 1).round()[:0:-1]
        case "leading":
            visited = (np.arange(steps + 1) * (last // (steps + 1)))[:0:-1] + float(process.steps_offset)
        case "trailing":
            visited = _trailing(last, process.train_timesteps, steps)
    return _in_training(visited, process, steps)


def _trailing(last: int, count: int, steps: int) -> Array:
    visited: Array = (
        np.arange(last, 0, -count / steps)[:steps].round() - 1
    )  # rounding may make arange one longer than N
    return visited[visited >= 0]


def _in_training(visited: Array, process: Diffusion, steps: int) -> Array:
    first, last = visited[0], visited[-1]
    if first > process.train_timesteps - 1 or last < 0:
        raise MmgenError(
            f"{steps} steps with steps_offset {process.steps_offset} go from timestep {first:.0f} to {last:.0f}",
            wanted=f"at most {process.train_timesteps - 1} and at least 0",
            remedy="take fewer steps",
        )
    return visited


def _too_many(steps: int, most: int) -> MmgenError:
    return MmgenError("steps", got=steps, wanted=f"at most {most} with this process", remedy="take fewer steps")


def respaced(kind: Sigmas, highest: float, lowest: float, steps: int) -> Array:
    """Sigmas (N,) from highest to lowest.

    karras: Karras et al. 2022, eq. 5, with rho = 7.  exponential: even in log sigma.
    """
    match kind:
        case "karras":
            return np.power(np.linspace(highest ** (1 / 7), lowest ** (1 / 7), steps), 7)
        case "exponential":
            return np.exp(np.linspace(np.log(highest), np.log(lowest), steps))
        case _:
            raise MmgenError("sigmas", got=repr(kind), wanted="'karras' or 'exponential'")


def timestep_of(sigmas: Array, training: Array) -> Array:
    """Fractional training timesteps (N,) at which ``training`` (T,) reaches ``sigmas`` (N,), linear in log sigma."""
    if len(training) < 2:
        raise MmgenError("train_timesteps", got=1, wanted="at least 2 for sigmas 'karras' or 'exponential'")
    wanted, known = np.log(sigmas)[:, None], np.log(training)
    # The last training sigma not above the wanted one.  With zero terminal SNR the very last training sigma may be
    # below the one before it, so this is not a search in a sorted table.
    reached = wanted >= known
    low = np.where(reached.any(1), len(known) - 1 - reached[:, ::-1].argmax(1), 0).clip(max=len(known) - 2)
    weight: Array = ((known[low] - wanted[:, 0]) / (known[low] - known[low + 1])).clip(0, 1)
    return low + weight


def euler_levels(process: Diffusion, steps: int, kind: Sigmas, final: FinalSigma) -> tuple[Array, Array]:
    """Sigmas (N + 1,) and timesteps (N,) of the Euler family (EulerDiscreteScheduler).

    Karras and exponential sigmas run between the first and the last of the spaced sigmas.
    """
    training = training_sigmas(process)
    visited = timesteps(process, steps)
    sigmas: Array = np.interp(visited, np.arange(len(training)), training)
    if kind != "schedule":
        sigmas = respaced(kind, sigmas[0], sigmas[-1], steps)
        visited = timestep_of(sigmas, training)
    return np.append(sigmas, _final(final, training)), visited


def multistep_levels(
    process: Diffusion, steps: int, kind: Sigmas, final: FinalSigma, lambda_min_clipped: float
) -> tuple[Array, Array]:
    """Sigmas (N + 1,) and whole timesteps (N,) of the DPM-Solver family (DPMSolverMultistepScheduler).

    Karras and exponential sigmas run over all of training.
    """
    training = training_sigmas(process)
    visited = multistep_timesteps(process, steps, lambda_min_clipped)
    sigmas = training[visited.astype(np.int64)]
    if kind != "schedule":
        sigmas = respaced(kind, training[-1], training[0], steps)
        visited = timestep_of(sigmas, training)
        rounds = kind == "karras" and process.beta_schedule != "squaredcos_cap_v2"
        visited = visited.round() if rounds else truncated(visited)
    return np.append(sigmas, _final(final, training)), visited


def _final(final: FinalSigma, training: Array) -> float:
    return 0.0 if final == "zero" else float(training[0])


def truncated(times: Array) -> Array:
    """Whole parts; a number that rounding left just short of a whole one counts as that."""
    whole: Array = np.floor(times + 1e-6)
    return whole


def flow_levels(process: Flow, steps: int, kind: Sigmas) -> Array:
    """Noise shares s (N + 1,) from 1 to 0 that flow solvers go through."""
    check_steps(steps)
    if process.train_timesteps < 1:
        raise MmgenError("train_timesteps", got=process.train_timesteps, wanted="at least 1")
    if not 0 < process.shift < np.inf:
        raise MmgenError("shift of the flow", got=process.shift, wanted="more than 0")
    levels: Array
    match process.schedule:
        case "uniform":
            levels = 1 - np.arange(steps) / steps
        case "diffusers":
            lowest = _shifted(np.array(1 / process.train_timesteps), process.shift)
            levels = np.linspace(1.0, lowest, steps)
    levels = _shifted(levels, process.shift)
    if kind != "schedule":
        levels = respaced(kind, levels[0], levels[-1], steps)
    return np.append(levels, 0.0)


def _shifted(levels: Array, shift: float) -> Array:
    """Esser et al. 2024, eq. 23: shift s / (1 + (shift - 1) s), written so that 1 stays exactly 1."""
    return levels / (levels + (1 - levels) / shift)


def flow_timesteps(process: Flow, levels: Array) -> Array:
    """What the denoiser is told (N,) at noise shares (N,)."""
    times = process.timestep_scale * (levels if process.noise_time == 1 else 1 - levels)
    return truncated(times) if process.integer_timesteps else times
