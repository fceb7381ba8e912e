"""Masked-token samplers by name: a whole run as a table of numbers.

A sampler is a function (process, new, steps, options) -> MaskedTable in float64; one graph plays all of them.  ``new``
is bool (positions,): where codes are generated; at the other positions they are known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.choices import chosen
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.options import Option, checked_options
from mmgen.runtime.solvers.schedules import check_steps
from mmgen.runtime.storage.process import Masked

Numbers = NDArray[np.floating[Any]]
Positions = NDArray[np.bool_]


@dataclass(frozen=True)
class MaskedTable:
    """N rows.  Row i gives every masked position a code and masks the least confident of them again:

        code    ~ softmax(sharpness logits), of the ``top_k`` most likely codes
        score   = confidence[0] log p(code) + confidence[1] Gumbel noise; lowest from position ``window`` on
        masked' = the ``masked`` lowest scores, and each position with probability ``stay``

    An unmasked position gets a code in the same way with probability ``redraw``; otherwise it keeps its own.  A row
    unmasks at least one position, if two are masked.  In the last row ``masked`` and ``stay`` are 0.
    ``masked_reference`` is the definition.
    """

    sharpness: Numbers  # (N,) 1 / temperature
    top_k: Numbers  # (N,) 1: the most likely code, whatever the uniform number is
    confidence: Numbers  # (N, 2) weights of log p and of the noise
    masked: Numbers  # (N,) number of positions that are masked after the row
    stay: Numbers  # (N,) probability that a masked position stays masked
    window: Numbers  # (N,) positions before it may be unmasked
    masked_before: Numbers  # (N,) share of the positions to generate that is masked before the row
    redraw: Numbers  # (N,) probability that an unmasked position gets another code
    timestep: Numbers  # (N,) for a denoiser that is conditioned on it

    @property
    def stochastic(self) -> NDArray[np.bool_]:
        """(N,): whether a row uses uniform numbers; every row may."""
        return np.ones(len(self), bool)

    def __len__(self) -> int:
        return len(self.masked)


@dataclass(frozen=True)
class MaskGIT:
    """Options of ``maskgit``."""

    temperature: float = 4.5  # of the confidence's noise; falls to 0 with the share of steps that is done
    compounding: bool = False  # each row multiplies the one before it, as in Show-o and MMaDA
    sampling_temperature: float = 1.0  # 0: the most likely code
    top_k: int = 0  # 0: all codes


@dataclass(frozen=True)
class Amused:
    """Options of ``amused``; the defaults are AmusedPipeline's."""

    temperature: float = 2.0  # of the confidence's noise, at the first step
    last_temperature: float = 0.0  # at the last one
    sampling_temperature: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class MDLM:
    """Options of ``mdlm``."""

    end: float = 1e-5  # the last time
    greedy_end: bool = True  # what is still masked at the end becomes the most likely code
    sampling_temperature: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class LLaDA:
    """Options of ``llada``."""

    blocks: int = 1  # unmasked one after the other, each in an equal number of steps
    order: Literal["confidence", "random"] = "confidence"  # which positions are unmasked first
    sampling_temperature: float = 0.0
    top_k: int = 0


@dataclass(frozen=True)
class VQDiffusion:
    """Options of ``vq-diffusion``."""

    sampling_temperature: float = 1.0
    top_k: int = 0


Drawing = MaskGIT | Amused | MDLM | LLaDA | VQDiffusion  # the options that say how codes are drawn


def maskgit(process: Masked, new: Positions, steps: int, options: MaskGIT) -> MaskedTable:
    """Build the table of Chang et al. 2022, section 3.2."""
    done = np.arange(steps + 1) / steps
    left = 1 - done[1:]
    noise = options.temperature * (np.cumprod(left) if options.compounding else left)
    return _by_confidence(process, new, done, noise, options)


def amused(process: Masked, new: Positions, steps: int, options: Amused) -> MaskedTable:
    """Build the table of Patil et al. 2024, as diffusers' AmusedScheduler does.

    It counts in float32, where cos(pi / 3) is a little less than a half: of 256 positions 127 are masked then, not 128.
    """
    done = np.arange(steps + 1, dtype=np.float32) / np.float32(steps)
    noise = np.linspace(options.temperature, options.last_temperature, steps)
    return _by_confidence(process, new, done, noise, options)


def mdlm(process: Masked, new: Positions, steps: int, options: MDLM) -> MaskedTable:
    """Build the table of Sahoo et al. 2024, eq. 7 with the log-linear schedule: masked with probability t at time t.

    From t to s a masked position stays masked with probability s / t; ``steps`` such rows, then one unmasks the rest.
    """
    if not 0 <= options.end < 1:
        raise MmgenError("option 'end' of solver 'mdlm'", got=options.end, wanted="a time from 0, less than 1")
    times = np.linspace(1, options.end, steps + 1)
    stay = np.append(times[1:] / times[:-1], 0)
    sharpness, top_k = _draw(process, steps + 1, options)
    if options.greedy_end:
        top_k[-1] = 1
    return _by_chance(process, new, times, sharpness, top_k, stay, np.zeros(steps + 1))


def llada(process: Masked, new: Positions, steps: int, options: LLaDA) -> MaskedTable:
    """Build the table of Nie et al. 2025, algorithms 4 and 5: blocks from left to right, evenly over the steps.

    Where the blocks don't divide the steps, the first have one more.  Steps that would unmask nothing, where a block
    has fewer positions to generate than steps, are left out.
    """
    if options.blocks < 1 or new.size % options.blocks or steps < options.blocks:
        raise MmgenError(
            "blocks", got=options.blocks, wanted=f"a divisor of {new.size} positions, and at most the {steps} steps",
            remedy="change steps or blocks",
        )  # fmt: skip
    length, counts = new.size // options.blocks, new.reshape(options.blocks, -1).sum(1)  # to generate in each block
    unmasked, window = [], []
    for block, count in enumerate(counts.tolist()):
        rows = min(count, steps // options.blocks + (block < steps % options.blocks))
        unmasked += [count // rows + (i < count % rows) for i in range(rows)]  # the first unmask one position more
        window += [(block + 1) * length] * rows
    masked = (counts.sum() - np.cumsum(unmasked)).astype(np.float64)
    weights = (1.0, 0.0) if options.order == "confidence" else (0.0, 1.0)
    sharpness, top_k = _draw(process, len(masked), options)
    masked_before, none = np.append(1.0, masked[:-1] / counts.sum()), np.zeros(len(masked))
    return MaskedTable(
        sharpness, top_k, np.tile(weights, (len(masked), 1)), masked, none, np.array(window, np.float64), masked_before,
        none, timesteps(process, masked_before),
    )  # fmt: skip


def vq_diffusion(process: Masked, new: Positions, steps: int, options: VQDiffusion) -> MaskedTable:
    """Build the table of Gu et al. 2022, eq. 7 and 11.

    At timestep t a position is masked with probability h(t); a row goes from t to s < t.  A masked position stays
    masked with probability h(s) / h(t).  An unmasked one is regenerated with probability 1 - (1 - h(t)) / (1 - h(s)),
    so that codes that the network finds unlikely are replaced, and at timestep 0 with probability 1; but not where
    some positions are known from the start.

    In ``train_timesteps`` steps that is VQDiffusionScheduler's posterior, except for the chance, e = 1e-6 in all with
    its defaults, that training replaced a code by a random one: of the codes drawn on the way to s a share
    e / (1 - h(s)) would be random, 1e-4 at most.  Fewer steps are spread over all timesteps, as in section 4.2.
    """
    last = process.train_timesteps - 1
    if last < 1 or steps > last + 1:
        wanted = f"at most {last + 1}, one for each timestep" if last > 0 else "a denoiser conditioned on the timestep"
        raise MmgenError("steps of solver 'vq-diffusion'", got=steps, wanted=wanted)
    low, high = process.hidden
    masked_before = low + (high - low) * np.rint(np.linspace(last, 0, steps)) / last
    stay = np.append(masked_before[1:] / masked_before[:-1], 0)
    redraw = np.zeros(steps)
    if new.all():
        redraw = np.append(1 - (1 - masked_before[:-1]) / (1 - masked_before[1:]), 1)
    sharpness, top_k = _draw(process, steps, options)
    return _by_chance(process, new, masked_before, sharpness, top_k, stay, redraw)


SAMPLERS: Mapping[str, tuple[Callable[[Masked, Positions, int, Any], MaskedTable], type]] = {
    "maskgit": (maskgit, MaskGIT),
    "amused": (amused, Amused),
    "mdlm": (mdlm, MDLM),
    "llada": (llada, LLaDA),
    "vq-diffusion": (vq_diffusion, VQDiffusion),
}


def table(
    sampler: str,
    process: Masked,
    positions: int,
    steps: int,
    *,
    options: Mapping[str, Option] = {},
    begin: int = 0,
    new: Positions | None = None,
) -> MaskedTable:
    """Return the table of a sampler's run in float32.

    Args:
        sampler: a name of ``SAMPLERS``.
        process: what the denoiser was trained to undo.
        positions: tokens of a sample, the product of its latent shape.
        steps: from 1 to the number of positions; ``mdlm`` may take more, and has one row more than steps;
            ``vq-diffusion`` takes as many as there are timesteps.
        options: fields of the sampler's options, the dataclass next to it in ``SAMPLERS``.
        begin: number of steps left out at the start, where most is masked; not with several blocks of ``llada``.
        new: (positions,) where codes are generated, at least one; None: everywhere.

    Raises:
        MmgenError: unknown sampler, an unknown option or a bad value of one, a number of steps that is impossible.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows = exact(sampler, process, positions, steps, options=options, begin=begin, new=new)
        numbers = {f.name: getattr(rows, f.name).astype(np.float32) for f in fields(rows)}
    if not all(np.isfinite(array).all() for array in numbers.values()):
        raise MmgenError(f"solver {sampler!r} isn't finite with these options", remedy="choose smaller ones")
    return replace(rows, **numbers)


def exact(
    sampler: str,
    process: Masked,
    positions: int,
    steps: int,
    *,
    options: Mapping[str, Option] = {},
    begin: int = 0,
    new: Positions | None = None,
) -> MaskedTable:
    """Return the table as ``table`` does, before rounding: the arrays are float64."""
    sampler = chosen("solver for a masked process", sampler, tuple(SAMPLERS))
    steps = check_steps(steps)
    if sampler not in ("mdlm", "vq-diffusion") and steps > positions:
        raise MmgenError(f"steps of solver {sampler!r}", got=steps, wanted=f"at most {positions}, one for each token")
    function, kind = SAMPLERS[sampler]
    checked = checked_options(sampler, kind, options)
    if begin and getattr(checked, "blocks", 1) > 1:
        raise MmgenError(
            f"solver {sampler!r} unmasks {checked.blocks} blocks in order and can't begin in the middle",
            remedy="ask for one block, or for a strength of 1",
        )
    rows = function(process, np.ones(positions, np.bool_) if new is None else new, steps, checked)
    left = slice(min(begin, len(rows) - 1), None)
    return replace(rows, **{f.name: getattr(rows, f.name)[left] for f in fields(rows)})


def timesteps(process: Masked, masked: Numbers) -> Numbers:
    """Find the timesteps (N,) whose masked shares are nearest to these (N,); 0 where there are no timesteps."""
    low, high = process.hidden
    last = max(process.train_timesteps - 1, 0)
    nearest: Numbers = np.clip(np.rint((masked - low) / (high - low) * last), 0, last)
    return nearest


def _by_chance(
    process: Masked,
    new: Positions,
    masked_before: Numbers,
    sharpness: Numbers,
    top_k: Numbers,
    stay: Numbers,
    redraw: Numbers,
) -> MaskedTable:
    """Build rows that unmask each position independently."""
    rows = len(masked_before)
    confidence, none, everywhere = np.zeros((rows, 2)), np.zeros(rows), np.full(rows, float(new.size))
    timestep = timesteps(process, masked_before)
    return MaskedTable(sharpness, top_k, confidence, none, stay, everywhere, masked_before, redraw, timestep)


def _by_confidence(
    process: Masked, new: Positions, done: Numbers, noise: Numbers, options: MaskGIT | Amused
) -> MaskedTable:
    """Build rows that leave fewer and fewer positions masked.

    Args:
        done: (N + 1,) share of the steps that is done before each row and at the end; counts are in its precision.
        noise: (N,) weight of the confidence's noise.
    """
    real, steps = done.dtype.type, len(noise)
    ratio = np.cos(done * real(np.pi) / 2) if process.schedule == "cosine" else 1 - done
    masked = np.maximum(np.floor(new.size * (real(new.mean()) * ratio[1:])), 1)
    masked[-1] = 0
    sharpness, top_k = _draw(process, steps, options)
    confidence, everywhere = np.stack([np.ones(steps), noise], 1), np.full(steps, float(new.size))
    masked_before, none = ratio[:-1], np.zeros(steps)
    return MaskedTable(
        sharpness, top_k, confidence, masked.astype(np.float64), none, everywhere, masked_before, none,
        timesteps(process, masked_before),
    )  # fmt: skip


def _draw(process: Masked, rows: int, options: Drawing) -> tuple[Numbers, Numbers]:
    """Return ``sharpness`` and ``top_k`` of all rows."""
    temperature, top_k = options.sampling_temperature, options.top_k or process.codes
    if not 0 <= temperature < np.inf:
        raise MmgenError("sampling_temperature", got=temperature, wanted="a number from 0")
    if not 1 <= top_k <= min(process.codes, process.candidates) and top_k != process.codes:
        most = min(process.codes, process.candidates)
        raise MmgenError("top_k", got=top_k, wanted=f"1 to {most}, or 0 for all codes")
    greedy = temperature == 0
    return np.full(rows, 1.0 if greedy else 1 / temperature), np.full(rows, 1.0 if greedy else float(top_k))
