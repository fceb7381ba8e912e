"""A masked step and its loop in plain numpy: the definition that the graph and faster loops are compared with."""

from collections.abc import Callable, Iterator
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
    codes, score, stays = draw(process, table, row, tokens, logits, choice, order)
    return unmask(process, table, row, tokens, codes, score, stays, order), codes


def draw(
    process: Masked,
    table: MaskedTable,
    row: int,
    tokens: Tokens,
    logits: Array,
    choice: Array,
    order: Array,
) -> tuple[Tokens, Array, Tokens]:
    """Draw the codes, the first half of a row; arguments are those of ``step``.

    Returns:
        The codes (B, N) of all positions; their scores (B, N); how many of the lowest stay masked (B,).
    """
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

    stays = np.minimum(table.masked[row], np.maximum(masked.sum(-1) - 1, 1))  # at least one position is unmasked
    return codes, score, stays


def unmask(
    process: Masked,
    table: MaskedTable,
    row: int,
    tokens: Tokens,
    codes: Tokens,
    score: Array,
    stays: Tokens,
    order: Array,
) -> Tokens:
    """Unmask the most confident positions, the second half of a row, and return tokens (B, N) after it.

    ``codes``, ``score`` and ``stays`` are what ``draw`` returned.
    """
    # Of positions of equal score the first is unmasked first.
    mine, others = score[:, :, None], score[:, None, :]
    behind = np.tri(tokens.shape[1], dtype=bool).T  # (N, N) the position itself and those behind it
    rank = ((others < mine) | ((others == mine) & behind)).sum(-1)  # (B, N) from 1, the lowest score
    again = (tokens == process.mask_id) & ((rank <= stays[:, None]) | (order < table.stay[row]))
    return np.where(again, process.mask_id, codes)


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


def running_sum(x: Array) -> Array:
    """Sum the last axis up to each entry, in log2 of its length additions that any machine makes in this order."""
    shift = 1
    while shift < x.shape[-1]:
        x = np.concatenate([x[..., :shift], x[..., shift:] + x[..., :-shift]], -1)
        shift *= 2
    return x
