"""Noise levels and timesteps that a solver goes through, in float64.

These are diffusers' schedules in every rounding, offset and end point, in which
its schedulers differ from each other: a model sampled with the wrong ones is
subtly worse.  Left out are accidents of its float32: a timestep may come out
one lower there, and trailing spacing one step too long (61 of 1000).
"""

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.numbers import whole
from mmgen.runtime.storage.process import EDM, Diffusion, Flow
from mmgen.runtime.storage.schema import MOST_STEPS, Sigmas

Array = NDArray[np.floating[Any]]
FinalSigma = Literal["zero", "sigma_min"]

SMALLEST_ALPHA = 2.0**-24  # stands for a zero at the end of alphas_cumprod where a finite sigma is needed


def betas(process: Diffusion) -> Array:
    """Return the variances (T,) that training adds step by step, before any rescaling to zero terminal SNR.

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
    """Return the shares of signal variance (T,), falling; the last is exactly 0 with zero terminal SNR.

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
    """Return the noise-to-signal ratios (T,) sqrt((1 - a) / a) at the training timesteps; the last is finite."""
    shares = alphas_cumprod(process)
    if shares[-1] == 0:
        shares[-1] = SMALLEST_ALPHA
    return np.sqrt((1 - shares) / shares)


def check_steps(steps: object) -> int:
    """Check a number of steps.

    Raises:
        MmgenError: not a whole number, below 1, or above ``MOST_STEPS``.
    """
    return whole("steps", steps, "a whole number, at least 1", 1, MOST_STEPS)


def timesteps(process: Diffusion, steps: int) -> Array:
    """Return the training timesteps (N,) that one-step solvers visit, from noisy to clean.

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
    """Return the training timesteps (N,), whole numbers, that multistep solvers visit, from noisy to clean.

    Unlike ``timesteps``, DPM-Solver lays out N intervals and takes their noisy ends, so that timestep 0 isn't visited.
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


def respaced(kind: Sigmas, highest: float, lowest: float, steps: int, rho: float = 7) -> Array:
    """Return sigmas (N,) from highest to lowest.

    karras: Karras et al. 2022, eq. 5.  exponential: even in log sigma.  beta: quantiles of Beta(0.6, 0.6)
    between the ends, at even probabilities (Lee et al. 2024, Beta sampling is all you need).
    """
    match kind:
        case "karras":
            return np.power(np.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps), rho)
        case "exponential":
            return np.exp(np.linspace(np.log(highest), np.log(lowest), steps))
        case "beta":
            return lowest + beta_quantiles(1 - np.linspace(0, 1, steps)) * (highest - lowest)
        case _:
            raise MmgenError("sigmas", got=shown(kind), wanted="'karras' or 'exponential' or 'beta'")


def beta_quantiles(probability: Array) -> Array:
    """Compute quantiles (N,) of Beta(a, a), a = 0.6, to 1e-15: bisection on the power series of its distribution.

    The density is even about 1/2; below it, I(x) = x^a / B(a, a) sum_n (1 - a)_n / n! x^n / (a + n)
    (DLMF 8.17.7), whose terms at least halve.
    """
    a, n = 0.6, np.arange(60)
    terms = np.append(1, np.cumprod((n[:-1] + 1 - a) / n[1:])) / (a + n) * math.gamma(2 * a) / math.gamma(a) ** 2
    tail = np.minimum(probability, 1 - probability)
    low, high = np.zeros_like(tail), np.full_like(tail, 0.5)
    for _ in n:
        middle = (low + high) / 2
        below = middle**a * (middle[:, None] ** n @ terms) < tail
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return np.where(probability < 0.5, low, 1 - low)


def timestep_of(sigmas: Array, training: Array) -> Array:
    """Find fractional training timesteps (N,) where ``training`` (T,) reaches ``sigmas`` (N,), linear in log sigma."""
    if len(training) < 2:
        raise MmgenError("train_timesteps", got=1, wanted="at least 2 unless sigmas is 'schedule'")
    wanted, known = np.log(sigmas)[:, None], np.log(training)
    # The last training sigma not above the wanted one.  With zero terminal SNR the very last training sigma may be
    # below the one before it, so this is not a search in a sorted table.
    reached = wanted >= known
    low = np.where(reached.any(1), len(known) - 1 - reached[:, ::-1].argmax(1), 0).clip(max=len(known) - 2)
    weight: Array = ((known[low] - wanted[:, 0]) / (known[low] - known[low + 1])).clip(0, 1)
    return low + weight


def euler_levels(
    process: Diffusion, steps: int, kind: Sigmas, final: FinalSigma, begin: int = 0
) -> tuple[Array, Array]:
    """Return sigmas (N + 1,) and timesteps (N,) of the Euler family (EulerDiscreteScheduler).

    Respaced sigmas run between the first and the last of the process's own.  The first ``begin`` steps are left out.
    """
    training = training_sigmas(process)
    visited = timesteps(process, steps)
    sigmas: Array = np.interp(visited, np.arange(len(training)), training)
    if kind != "schedule":
        sigmas = respaced(kind, sigmas[0], sigmas[-1], steps)
        visited = timestep_of(sigmas, training)
    return np.append(sigmas, _final(final, training))[begin:], visited[begin:]


def multistep_levels(
    process: Diffusion,
    steps: int,
    kind: Sigmas,
    final: FinalSigma,
    *,
    lambda_min_clipped: float = -np.inf,
    rounds_cosine: bool = False,
    begin: int = 0,
) -> tuple[Array, Array]:
    """Return sigmas (N + 1,) and whole timesteps (N,) of DPMSolverMultistepScheduler and UniPCMultistepScheduler.

    Respaced sigmas run over all of training.  Their timesteps are truncated; those of Karras sigmas are rounded, on
    the cosine schedule only with ``rounds_cosine``, as UniPC does.  The first ``begin`` steps are left out.
    """
    training = training_sigmas(process)
    visited = multistep_timesteps(process, steps, lambda_min_clipped)
    sigmas = training[visited.astype(np.int64)]
    if kind != "schedule":
        sigmas = respaced(kind, training[-1], training[0], steps)
        visited = timestep_of(sigmas, training)
        rounds = kind == "karras" and (rounds_cosine or process.beta_schedule != "squaredcos_cap_v2")
        visited = visited.round() if rounds else truncated(visited)
    return np.append(sigmas, _final(final, training))[begin:], visited[begin:]


def edm_levels(process: EDM, steps: int, kind: Sigmas, final: FinalSigma = "zero", begin: int = 0) -> Array:
    """Return sigmas (N + 1,): N from sigma_max to sigma_min, then where the last step ends.

    A single step starts at sigma_max.  The first ``begin`` steps are left out.
    """
    last = 0.0 if final == "zero" else process.sigma_min
    return np.append(edm_sigmas(process, check_steps(steps), kind), last)[begin:]


def edm_sigmas(process: EDM, count: int, kind: Sigmas) -> Array:
    """Return sigmas (count,) from sigma_max to sigma_min, as the process spaces them or ``kind`` asks for.

    Raises:
        MmgenError: the process's numbers make no noise levels.
    """
    if not 0 < process.sigma_min < process.sigma_max < np.inf:
        got, wanted = f"{process.sigma_min:g} to {process.sigma_max:g}", "sigma_min above 0 and below sigma_max"
        raise MmgenError("sigmas of the process", got=got, wanted=wanted)
    for name in ("sigma_data", "rho", "timestep_scale"):
        if not 0 < (number := getattr(process, name)) < np.inf:
            raise MmgenError(f"{name} of the process", got=number, wanted="more than 0")
    own, rho = (process.schedule, process.rho) if kind == "schedule" else (kind, 7.0)
    sigmas = respaced(own, process.sigma_max, process.sigma_min, count, rho)
    sigmas[0] = process.sigma_max  # exactly
    return sigmas


def _final(final: FinalSigma, training: Array) -> float:
    return 0.0 if final == "zero" else float(training[0])


def truncated(times: Array) -> Array:
    """Return whole parts; a number that rounding left just short of a whole one counts as that."""
    parts: Array = np.floor(times + 1e-6)
    return parts


def flow_levels(process: Flow, steps: int, kind: Sigmas, begin: int = 0) -> Array:
    """Return noise shares s (N + 1,), falling to 0, for flow solvers: spaced, shifted, stretched, respaced.

    The first ``begin`` steps are left out.
    """
    check_steps(steps)
    if process.train_timesteps < 1:
        raise MmgenError("train_timesteps", got=process.train_timesteps, wanted="at least 1")
    if not 0 < process.shift < np.inf:
        raise MmgenError("shift of the flow", got=process.shift, wanted="more than 0")
    if process.terminal is not None and not 0 < process.terminal < 1:
        raise MmgenError("terminal of the flow", got=process.terminal, wanted="more than 0 and less than 1")
    lowest = np.array(1 / process.train_timesteps)
    levels: Array = 1 - np.arange(steps) / steps
    match process.schedule:
        case "diffusers":
            levels = np.linspace(1.0, _shifted(lowest, process.shift), steps)
        case "dpm":
            levels = (1 - lowest) * levels
        case "unipc":
            levels = lowest + (1 - lowest) * levels
    levels = _shifted(levels, process.shift)
    if process.terminal is not None and steps > 1:  # a single step starts at the noise
        levels = 1 - (1 - levels) * ((1 - process.terminal) / (1 - levels[-1]))
    if not levels[-1] > 0:
        raise MmgenError("train_timesteps of the flow", got=process.train_timesteps, wanted="at least 2")
    if kind != "schedule":
        levels = respaced(kind, levels[0], levels[-1], steps)
    return np.append(levels, 0.0)[begin:]


def resolution_shift(
    tokens: int,
    *,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    kind: Literal["exponential", "linear"] = "exponential",
) -> float:
    """Return the shift of a flow for pictures of ``tokens`` tokens: more noise for larger ones, as in FLUX.

    mu is linear in the number of tokens (pixels per side / 16, squared, for FLUX), base_shift at base_tokens and
    max_shift at max_tokens; the shift is exp(mu), or mu itself where kind is linear (Esser et al. 2024, section 5.3.2,
    which derives sqrt(m / n); the line in mu is what the FLUX models were trained with).
    """
    mu = base_shift + (tokens - base_tokens) * (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(mu) if kind == "exponential" else mu


def _shifted(levels: Array, shift: float) -> Array:
    """Shift noise shares, s to shift s / (1 + (shift - 1) s), so that 1 stays exactly 1 (Esser et al. 2024, eq. 23)."""
    return levels / (levels + (1 - levels) / shift)


def flow_timesteps(process: Flow, levels: Array) -> Array:
    """Return the timesteps (N,) that the denoiser is conditioned on at noise shares (N,)."""
    times = process.timestep_scale * (levels if process.noise_time == 1 else 1 - levels)
    return truncated(times) if process.integer_timesteps else times
