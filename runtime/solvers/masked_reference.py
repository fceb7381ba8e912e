"""A masked step and its loop in plain numpy: the definition that the graph and faster loops are compared with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.solvers.masked import MaskedTable
from mmgen.runtime.storage.process import Masked

Tokens = NDArray[np.int64]
Array = NDArray[np.floating[Any]]

TINY = 1e-20  # below it, probabilities and uniform numbers count as it
FAR = 1e30  # a score above and, negative, below all others


def step(
    process: Masked,
    table: MaskedTable,
    row: int,
    tokens: Tokens,
    logits: Array,
    choice: Array,
    order: Array,
) -> tuple[Tokens, Tokens]:
    """Play one row of a table; all arithmetic is in the dtype of the logits.

    Args:
        process: says what the mask is.
        table, row: the numbers of the step.
        tokens: (B, N), with masks.
        logits: (B, N, codes), after guidance.
        choice: uniform numbers (B, N) in [0, 1) that choose the codes.
        order: uniform numbers (B, N) in [0, 1) of the confidence's noise, and of what stays masked or is regenerated.

    Returns:
        Tokens (B, N) after the step; the codes (B, N) of all positions before some are masked again.
    """
    drawn = draw(process, table, row, tokens, logits, choice, order)
    return unmask(process, table, row, tokens, drawn, order), drawn.codes


@dataclass(frozen=True)
class Draw:
    """What the first half of a row makes."""

    codes: Tokens  # (B, N) of all positions
    log_p: Array  # (B, N) of the codes drawn, at a temperature of 1
    score: Array  # (B, N) confidence; that of an unmasked position is above, and behind the window below all others
    stays: Tokens  # (B,) how many of the lowest scores stay masked


def draw(
    process: Masked,
    table: MaskedTable,
    row: int,
    tokens: Tokens,
    logits: Array,
    choice: Array,
    order: Array,
) -> Draw:
    """Draw the codes, the first half of a row; arguments are those of ``step``."""
    real = logits.dtype.type
    masked = tokens == process.mask_id

    best_first = np.argsort(-logits, -1, kind="stable")[..., : min(process.codes, process.candidates)]
    best = np.take_along_axis(logits, best_first[..., :1], -1)  # (B, N, 1)
    limit = real(-FAR)
    if (top_k := int(table.top_k[row])) <= best_first.shape[-1]:
        limit = np.take_along_axis(logits, best_first[..., top_k - 1 : top_k], -1)
    # In the order of their numbers: a little noise in the logits then moves few limits between codes.
    weights = np.exp((logits - best) * real(table.sharpness[row])) * (logits >= limit)  # not divided by their sum
    cumulative = running_sum(weights)
    beyond = (weights > 0) & (cumulative > choice[..., None] * cumulative[..., -1:])
    first = np.where(beyond, np.arange(process.codes), process.codes).min(-1)
    drawn = np.where(first < process.codes, first, best_first[..., 0])  # rounding may leave none beyond
    codes = np.where(masked | (order < table.redraw[row]), drawn, tokens)

    spread = np.exp(logits - best).sum(-1)
    log_p = (np.take_along_axis(logits, drawn[..., None], -1) - best)[..., 0] - np.log(spread)
    gumbel = -np.log(np.maximum(-np.log(np.maximum(order, real(TINY))), real(TINY)))
    score = real(table.confidence[row][0]) * log_p + real(table.confidence[row][1]) * gumbel
    score = np.where(np.arange(tokens.shape[1]) < table.window[row], score, real(-FAR))
    score = np.where(masked, score, real(FAR))

    least = 0 if table.threshold[row] <= 0 else 1  # without a threshold, a position that is left waits for the last row
    stays = np.minimum(table.masked[row], np.maximum(masked.sum(-1) - 1, least))  # at least one position is unmasked
    return Draw(codes, log_p, score, stays)


def unmask(process: Masked, table: MaskedTable, row: int, tokens: Tokens, drawn: Draw, order: Array) -> Tokens:
    """Unmask the most confident positions, the second half of a row, and return tokens (B, N) after it."""
    # Of positions of equal score the first is unmasked first.
    mine, others = drawn.score[:, :, None], drawn.score[:, None, :]
    positions = np.arange(tokens.shape[1])
    behind = positions[:, None] <= positions  # (N, N) the position itself and those behind it
    rank = ((others < mine) | ((others == mine) & behind)).sum(-1)  # (B, N) from 1, the lowest score
    again = (rank <= drawn.stays[:, None]) | (order < table.stay[row])
    again = (again & (drawn.log_p < table.threshold[row])) | (positions >= table.window[row])
    return np.where((tokens == process.mask_id) & again, process.mask_id, drawn.codes)


def run(
    process: Masked,
    table: MaskedTable,
    denoiser: Callable[[Tokens], Array],
    tokens: Tokens,
    uniforms: Array,
) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield tokens and codes after each row.

    Args:
        process: says what the mask is.
        table: N rows.
        denoiser: from tokens (B, positions) to logits (B, positions, codes) after guidance.
        tokens: (B, positions) that the run starts from, masks or not.
        uniforms: (N, 2, B, positions) in [0, 1): of each row those for the choice and those for the order.
    """
    for row, (choice, order) in enumerate(uniforms):
        tokens, codes = step(process, table, row, tokens, denoiser(tokens), choice, order)
        yield tokens, codes


def play(
    process: Masked,
    table: MaskedTable,
    denoiser: Callable[[Tokens], Array],
    tokens: Tokens,
    uniforms: Array,
    end: int | None = None,
) -> Iterator[tuple[int, Tokens, Tokens]]:
    """Yield the rows that matter, from 0, with tokens and codes as ``run`` does; the first row always runs.

    Rows that are left out change nothing, or nothing before a token that ends the text: what ``ended`` makes of the
    last tokens is the same as after ``run``.

    Args:
        process, table, denoiser, tokens, uniforms: as ``run`` takes them.
        end: the token that ends a text; None: there is none.
    """
    row: int | None = 0
    while row is not None:
        tokens, codes = step(process, table, row, tokens, denoiser(tokens), *uniforms[row])
        yield row, tokens, codes
        row = following(process, table, row, tokens, end)


def following(process: Masked, table: MaskedTable, row: int, tokens: Tokens, end: int | None = None) -> int | None:
    """Return the next row that matters after ``row`` left these tokens (B, N); None: there is none.

    A masked position matters unless a token before it ends the text.  A row matters if there is such a position before
    its window, or if the table regenerates unmasked positions, which may change anything.
    """
    if table.redraw[row + 1 :].any():
        return row + 1
    masked = tokens == process.mask_id
    if end is not None:
        masked = masked & ~np.logical_or.accumulate(tokens == end, -1)
    if not masked.any():
        return None
    rows = np.flatnonzero(table.window[row + 1 :] > masked.any(0).argmax())  # the first position that matters
    return row + 1 + int(rows[0]) if rows.size else None


def ended(tokens: NDArray[Any], end: int | None) -> NDArray[Any]:
    """Replace what follows the first token that ends a text (B, N) by that token; None: nothing ends one."""
    return tokens if end is None else np.where(np.logical_or.accumulate(tokens == end, -1), end, tokens)


def running_sum(x: Array) -> Array:
    """Sum the last axis up to each entry, in log2 of its length additions that any machine makes in this order."""
    shift = 1
    while shift < x.shape[-1]:
        x = np.concatenate([x[..., :shift], x[..., shift:] + x[..., :-shift]], -1)
        shift *= 2
    return x
