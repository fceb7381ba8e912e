"""Receipts (validation records) of a masked step: its logits against torch's, its draws against the definition.

Drawn codes themselves say little of an error.  Where many codes are about as likely, rounding moves the limits
between them, and a good graph draws others than torch; where one code is certain, a bad graph draws the same.
"""

from pathlib import Path

import numpy as np

from mmgen.export.base.dtypes import load
from mmgen.export.proof.torch_run import Arrays, Sample
from mmgen.runtime.loop.masked_plan import ROWS
from mmgen.runtime.solvers.masked import MaskedTable
from mmgen.runtime.solvers.masked_reference import Draw, draw, unmask
from mmgen.runtime.storage import limits
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Receipt
from mmgen.runtime.verify import relative_rms, share

LOGITS = "logits"  # among the outputs of a step's sample: guided, (B, positions, codes)
REACH = 16.0  # codes that are exp(-16) times as likely as the likeliest are never drawn, and may be anything


def logits_of(path: Path) -> str:
    """Name the tensor of a step graph that holds its guided logits: what its last TopK, the sampler's, takes."""
    sorts = [node for node in load(path).graph if node.op_type == "TopK"]
    return sorts[-1].inputs[0].name or ""  # type: ignore[union-attr]  # TopK has an input


def compare(level: int, policy: str, process: Masked, got: Arrays, sample: Sample) -> list[Receipt]:
    """Compare a step with its reference, at level 1 or 2.

    The logits are compared where a code is drawn, among the codes that may be drawn there, less their mean: a constant
    changes no probability.
    """
    truth, logits = sample.outputs[LOGITS], got[LOGITS]  # (B, N, codes)
    tokens = sample.inputs[names.TOKENS].reshape(truth.shape[:2])
    choice, order = (sample.inputs[name].reshape(tokens.shape) for name in (names.CHOICE, names.ORDER))
    replaced = (tokens == process.mask_id) | (order < sample.inputs[names.REDRAW])
    error = relative_rms(*_centred(logits[replaced], truth[replaced]))

    row = _row(sample.inputs)
    drawn = draw(process, row, 0, tokens, logits, choice, order)
    codes = drawn.codes
    after = unmask(process, row, 0, tokens, drawn, order)
    made, found = (got[name].reshape(tokens.shape) for name in (names.NEXT_TOKENS, names.CODES))
    possible = (made == process.mask_id) | (made == codes)
    after = np.where(at_threshold(process, row, tokens, drawn, limits.TIED_SCORES["fp32"]) & possible, made, after)
    either = tied(drawn.score, drawn.stays, limits.TIED_SCORES["fp32"])
    if ((made == process.mask_id).sum(-1) == (after == process.mask_id).sum(-1)).all():
        after = np.where(either & possible, made, after)
    return [
        Receipt(level, "step", "relative RMS", error, limits.GRAPH_RMS[policy], LOGITS),
        *(
            Receipt(level, "step", "share", share(got, want), limits.GRAPH_CODES, name, at_least=True)
            for name, got, want in ((names.NEXT_TOKENS, made, after), (names.CODES, found, codes))
        ),
    ]


def undecided(process: Masked, sample: Sample) -> np.ndarray:
    """Find positions (B, *L) where half precision may unmask otherwise than torch."""
    logits = sample.outputs[LOGITS]
    tokens, choice, order = (
        sample.inputs[name].reshape(logits.shape[:2]) for name in (names.TOKENS, names.CHOICE, names.ORDER)
    )
    row, near = _row(sample.inputs), limits.TIED_SCORES["fp16"]
    drawn = draw(process, row, 0, tokens, logits, choice, order)
    found = tied(drawn.score, drawn.stays, near) | at_threshold(process, row, tokens, drawn, near)
    return found.reshape(sample.inputs[names.TOKENS].shape)


def _row(inputs: Arrays) -> MaskedTable:
    """Build a table of the one row whose numbers a step is given."""
    numbers = {name: inputs[name] for name in ROWS}
    numbers[names.CONFIDENCE] = numbers[names.CONFIDENCE][None]
    return MaskedTable(**numbers, masked_before=np.ones(1), timestep=np.zeros(1))  # which a draw doesn't use


def tied(score: np.ndarray, stays: np.ndarray, near: float) -> np.ndarray:
    """Find positions (B, N) where rounding decides whether they are unmasked: near the limit, if others are as near.

    Where all is masked and nothing is given, a model that knows relative positions alone has the same logits at all
    positions, but for rounding.

    Args:
        score, stays: as ``draw`` returns them.
        near: of scores that rounding may exchange; of those above 1 a share.
    """
    ranked = np.sort(score, -1)
    at = stays[:, None].astype(np.int64)
    low = np.take_along_axis(ranked, np.maximum(at - 1, 0), -1)  # the best that stays masked
    high = np.take_along_axis(ranked, np.minimum(at, score.shape[-1] - 1), -1)  # the worst that is unmasked
    reach = near * np.maximum(1, np.abs(low))
    found: np.ndarray = (high - low <= reach) & (score >= low - reach) & (score <= high + reach)
    return found


def at_threshold(process: Masked, row: MaskedTable, tokens: np.ndarray, drawn: Draw, near: float) -> np.ndarray:
    """Find masked positions (B, N) where rounding decides whether a row's one threshold is reached."""
    reach = near * np.maximum(1, np.abs(drawn.log_p))
    found: np.ndarray = (tokens == process.mask_id) & (np.abs(drawn.log_p - row.threshold[0]) <= reach)
    return found


def _centred(got: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Subtract from both (M, codes) their means over the codes within reach; 0 elsewhere."""
    near = truth > truth.max(-1, keepdims=True) - REACH
    count = near.sum(-1, keepdims=True)
    both = (np.where(near, logits, 0).astype(np.float64) for logits in (got, truth))
    first, second = (np.where(near, x - x.sum(-1, keepdims=True) / count, 0) for x in both)
    return first, second
