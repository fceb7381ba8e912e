"""Masked-token samplers by name: a whole run as a table of numbers.

A sampler is a function (process, new, steps, options) -> MaskedTable in float64; one graph plays all of them.  ``new``
is bool (positions,): where codes are generated; at the other positions they are known.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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

OFF = 1.0  # a threshold that no log p reaches


@dataclass(frozen=True)
class MaskedTable:
    """N rows.  Row i gives every masked position a code and masks the least confident of them again:

        code    ~ softmax(sharpness logits), of the ``top_k`` most likely codes
        score   = confidence[0] log p(code) + confidence[1] Gumbel noise; lowest from position ``window`` on
        masked' = the ``masked`` lowest scores, and each position with probability ``stay``; of these not where
                  log p >= ``threshold``, but all from position ``window`` on

    An unmasked position gets a code in the same way with probability ``redraw``; otherwise it keeps its own.  A row
    unmasks at least one position before ``window``, if two are masked; with a threshold, if one is.  In the last row
    ``masked`` and ``stay`` are 0, and ``window`` is behind all.  ``masked_reference`` is the definition.
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
    threshold: Numbers  # (N,) log p at which a position is unmasked, whatever its score is; ``OFF``: at none

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
    blocks: int = 1  # unmasked one after the other, as K codebooks are whose codes (K, T) are one after the other
    first: int = 0  # steps of the first block, the others sharing the rest evenly; 0: it has as many as they


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
    threshold: float = 0.0  # probability from which a code is unmasked beyond what the steps ask for; 0: none is
    sampling_temperature: float = 0.0
    top_k: int = 0


@dataclass(frozen=True)
class VQDiffusion:
    """Options of ``vq-diffusion``."""

    sampling_temperature: float = 1.0
    top_k: int = 0


Drawing = MaskGIT | Amused | MDLM | LLaDA | VQDiffusion  # the options that say how codes are drawn


def maskgit(process: Masked, new: Positions, steps: int, options: MaskGIT) -> MaskedTable:
    """Build the table of Chang et al. 2022, section 3.2.

    With ``compounding``, of Xie et al. 2024 (Show-o) and Yang et al. 2025 (MMaDA), whose code multiplies the
    temperature by 1 - (i + 1) / N in row i.  It counts in float32, where cos(pi / 3) is a little less than a half, and
    so masks one position fewer where N steps are a multiple of 3, in the row that ends at two thirds.

    With ``blocks``, each has such a schedule of its own: Borsos et al. 2023 (SoundStorm), section 3.3, level by level,
    and Ziv et al. 2024 (MAGNeT).
    """
    blocks = list(_blocks(new, steps, options.blocks, options.first))
    rows = [block.steps if options.blocks == 1 else min(block.count, block.steps) for block in blocks]
    each = [np.arange(count + 1) / count for count in rows]
    left = [1 - done[1:] for done in each]
    noise = options.temperature * np.concatenate([np.cumprod(part) if options.compounding else part for part in left])
    return _by_confidence(process, options, blocks, each, noise)


def amused(process: Masked, new: Positions, steps: int, options: Amused) -> MaskedTable:
    """Build the table of Patil et al. 2024, as diffusers' AmusedScheduler does.

    It counts in float32, where cos(pi / 3) is a little less than a half: of 256 positions 127 are masked then, not 128.
    """
    done = np.arange(steps + 1, dtype=np.float32) / np.float32(steps)
    noise = np.linspace(options.temperature, options.last_temperature, steps)
    return _by_confidence(process, options, list(_blocks(new, steps)), [done], noise)


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

    With ``threshold``, a row also unmasks every position of its block whose code has this probability or more (Wu et
    al. 2025, Fast-dLLM, section 3.3).  What the steps ask for becomes the least that is reached: after row i no more
    positions are masked than without a threshold, and what was unmasked early counts for later rows, which unmask one
    position at least.  In as many steps as there are positions that is Fast-dLLM's rule: those above the threshold, or
    the best one.  The rows that a block no longer needs change nothing.
    """
    if not 0 <= options.threshold <= 1:
        wanted = "a probability up to 1, or 0 for none"
        raise MmgenError("option 'threshold' of solver 'llada'", got=options.threshold, wanted=wanted)
    unmasked: list[int] = []
    window: list[int] = []
    for block in _blocks(new, steps, options.blocks):
        rows = min(block.count, block.steps)
        unmasked += [block.count // rows + (i < block.count % rows) for i in range(rows)]  # the first one more
        window += [block.end] * rows
    total = new.sum()
    masked = (total - np.cumsum(unmasked)).astype(np.float64)
    weights = (1.0, 0.0) if options.order == "confidence" else (0.0, 1.0)
    return _rows(
        process, options, masked=masked, window=np.array(window, np.float64),
        confidence=np.tile(weights, (len(masked), 1)), masked_before=np.append(1.0, masked[:-1] / total),
        threshold=np.full(len(masked), np.log(options.threshold) if options.threshold > 0 else OFF),
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
        begin: number of steps left out at the start, where most is masked; not with several blocks.
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


@dataclass(frozen=True)
class _Block:
    """Neighbouring positions that are unmasked together, before those behind them."""

    end: int  # the position behind it
    length: int
    count: int  # positions to generate in it, at least 1
    later: int  # and in the blocks behind it
    steps: int


def _blocks(new: Positions, steps: int, blocks: int = 1, first: int = 0) -> Iterator[_Block]:
    """Divide positions and steps; blocks without positions to generate are left out.

    Args:
        first: steps of the first block; 0: as many as the others, or one more, as all the first have where the blocks
            don't divide the steps.
    """
    if blocks < 1 or new.size % blocks or steps < blocks:
        raise MmgenError(
            "blocks", got=blocks, wanted=f"a divisor of {new.size} positions, and at most the {steps} steps",
            remedy="change steps or blocks",
        )  # fmt: skip
    if first and not (blocks > 1 and 1 <= first <= steps - (blocks - 1)):
        wanted = f"1 to {steps - blocks + 1} of {steps} steps" if blocks > 1 else "0, where there is one block"
        raise MmgenError("first, steps of the first block", got=first, wanted=wanted, remedy="change steps or first")
    length, counts = new.size // blocks, new.reshape(blocks, -1).sum(1)
    shared, sharing = (steps - first, blocks - 1) if first else (steps, blocks)
    each = [shared // sharing + (i < shared % sharing) for i in range(sharing)]
    for i, of_block in enumerate([first, *each] if first else each):
        if counts[i]:
            yield _Block((i + 1) * length, length, int(counts[i]), int(counts[i + 1 :].sum()), of_block)


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
    none, everywhere = np.zeros(rows), np.full(rows, float(new.size))
    return MaskedTable(
        sharpness=sharpness, top_k=top_k, confidence=np.zeros((rows, 2)), masked=none, stay=stay, window=everywhere,
        masked_before=masked_before, redraw=redraw, timestep=timesteps(process, masked_before),
        threshold=np.full(rows, OFF),
    )  # fmt: skip


def _by_confidence(
    process: Masked, options: MaskGIT | Amused, blocks: Sequence[_Block], each: Sequence[Numbers], noise: Numbers
) -> MaskedTable:
    """Build rows that leave fewer and fewer positions of each block masked.

    Args:
        each: by block (rows + 1,) the share of its steps that is done before each row and at the end; counts are in its
            precision.
        noise: (N,) weight of the confidence's noise.
    """
    masked, before = [], []
    for block, done in zip(blocks, each, strict=True):
        real, total = done.dtype.type, blocks[0].count + blocks[0].later
        ratio = np.cos(done * real(np.pi) / 2) if process.schedule == "cosine" else 1 - done
        stay = np.maximum(np.floor(block.length * (real(block.count / block.length) * ratio[1:])), 1)
        stay[-1] = 0
        masked.append(block.later + stay.astype(np.float64))
        before.append(block.later / total + block.count / total * ratio[:-1])
    window = np.repeat([float(block.end) for block in blocks], list(map(len, masked)))
    return _rows(
        process, options, masked=np.concatenate(masked), window=window, masked_before=np.concatenate(before),
        confidence=np.stack([np.ones(len(noise)), noise], 1),
    )  # fmt: skip


def _rows(
    process: Masked,
    options: Drawing,
    *,
    masked: Numbers,
    window: Numbers,
    confidence: Numbers,
    masked_before: Numbers,
    threshold: Numbers | None = None,
) -> MaskedTable:
    """Build rows that count what stays masked, and change nothing that is unmasked."""
    sharpness, top_k = _draw(process, len(masked), options)
    none = np.zeros(len(masked))
    return MaskedTable(
        sharpness=sharpness, top_k=top_k, confidence=confidence, masked=masked, stay=none, window=window,
        masked_before=masked_before, redraw=none, timestep=timesteps(process, masked_before),
        threshold=np.full(len(masked), OFF) if threshold is None else threshold,
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
