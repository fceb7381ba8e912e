"""A request's conditions to the arrays a condition graph takes: checked, batched, one branch per guidance weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.choices import did_you_mean, either
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.request.conditions import Input, Inputs, values, wanted

Also = tuple[Mapping[str, object], float]  # further conditions by name, and their weight
Values = dict[str, list[Any]]  # by condition name: one value, or one for each of n
MOST = 1 << 20  # samples: no memory holds more
MOST_ALSO = 1000  # further conditions, likewise
FEWER = "ask for fewer at once"
NO_NULL = "this bundle has no null condition to guide away from"
PAIRS = "a list of pairs: conditions by name, and a weight"
BY_NAME = "a dictionary of conditions by name"


@dataclass(frozen=True)
class BranchValues:
    """The values of each branch, not encoded yet."""

    weights: NDArray[np.float32]  # (G,), that of the requested conditions first
    values: tuple[Values, ...]  # of each branch
    batch: int  # B


@dataclass(frozen=True)
class Branches:
    """The conditions of the denoiser, G branches for B samples."""

    weights: NDArray[np.float32]  # (G,), that of the requested conditions first
    inputs: dict[str, NDArray[np.generic]]  # by the condition's tensor, (branch batch, ...), branch by branch
    batch: int  # B


def read_branches(
    inputs: Inputs,
    given: Mapping[str, object],
    guidance: object,
    count: object = None,
    negative: Mapping[str, object] | None = None,
    also: Sequence[Also] = (),
    *,
    what: str = "guidance",
    resize: bool = False,
) -> BranchValues:
    """Read the conditions of a request and weigh them.

    A condition is one value or a list of them; lists have one length n, and every value serves ``count`` samples:
    B = n count.  With D(c) the denoiser's output for conditions c, guidance w goes from what isn't wanted to what is:

        D(negative) + w [D(given) - D(negative) + sum_i weight_i (D(also_i) - D(negative))]

    Without ``also`` that is classifier-free guidance (Ho & Salimans 2022, eq. 6, in the form diffusers uses); with it,
    the conjunction of Liu et al. 2022 (eq. 11), where a weight below 0 is a negation.  Branches of weight 0 are left
    out, except that of ``given``, which is the first.

    Args:
        inputs: the bundle's conditions.
        given: by condition name.
        negative: conditions in place of the null ones, by name; those left out stay null, or as given without a null.
        also: conditions and the weight of each; those left out are as given.
        what: the name of the guidance in errors.
        resize: as for ``conditions.values``.

    Raises:
        MmgenError: an unknown or missing condition, a value of the wrong type, shape or range, lists that differ in
            length, guidance for a bundle without null conditions, negative conditions without guidance.
    """
    given = by_name(inputs, given, "conditions")
    unwanted = by_name(inputs, {} if negative is None else negative, "negative")
    more = [(by_name(inputs, requested, f"also[{i}]"), share) for i, (requested, share) in enumerate(_pairs(also))]
    weight = real(what, guidance, "a finite number; 1 is none")
    shares = [real(f"weight of also[{i}]", share, "a finite number") for i, (_, share) in enumerate(more)]
    null_weight = 1 - weight * (1 + math.fsum(shares))
    if null_weight and not unwanted and all(each.null is None for each in inputs.values()):
        what = f"{what}, times 1 and the weights of also" if more else what
        remedy = f"{NO_NULL}: say what isn't wanted with negative" if inputs else "this bundle has no conditions"
        raise MmgenError(what, got=f"{1 - null_weight:g}", wanted="1", remedy=f"{remedy}, or ask for guidance=1")
    if unwanted and not null_weight:
        raise MmgenError(
            "negative conditions have no effect without guidance", wanted="guidance other than 1",
            remedy="ask for more, such as guidance=4",
        )  # fmt: skip
    requested = {name: _values(each, given.get(name), each.null, resize) for name, each in inputs.items()}
    null: Values = {name: requested[name] if each.null is None else [each.null] for name, each in inputs.items()}
    sets = [(requested, weight), (_instead(inputs, null, unwanted, resize), null_weight)]
    sets += [
        (_instead(inputs, requested, others, resize), weight * share)
        for (others, _), share in zip(more, shares, strict=True)
    ]
    used = [sets[0], *((values, w) for values, w in sets[1:] if w)]
    lengths = {len(values) for conditions, _ in used for values in conditions.values()} - {1}
    if len(lengths) > 1:
        raise MmgenError("conditions of different lengths", got=sorted(lengths), remedy="give lists of one length")
    number = lengths.pop() if lengths else 1
    if number > MOST:
        raise MmgenError("conditions of as many samples", got=number, wanted=f"at most {MOST}", remedy=FEWER)
    each_serves, most = 1, MOST // number
    if count is not None:
        each_serves = whole("count", count, "a whole number, at least 1", 1, most, remedy="count=4 makes four of each")
    with np.errstate(over="ignore"):
        weights = np.array([w for _, w in used], np.float32)
    if not np.isfinite(weights).all():
        got, remedy = f"weights {shown([w for _, w in used])}", "ask for less guidance, or smaller weights"
        raise MmgenError(what, got=got, wanted="weights that float32 has", remedy=remedy)
    return BranchValues(weights, tuple(values for values, _ in used), number * each_serves)


def encode(inputs: Inputs, branches: BranchValues) -> Branches:
    """Encode the values into the arrays that graphs take.

    Raises:
        MmgenError: a value of the wrong type or range.
    """
    arrays = {}
    for name, each in inputs.items():
        parts = []
        for branch in branches.values:  # no comprehension: warnings name the caller's line, so many calls from here
            made = each.encode(branch[name])
            parts.append(np.repeat(made, branches.batch // len(made), 0))
        arrays[each.condition.tensor] = np.concatenate(parts)
    return Branches(branches.weights, arrays, branches.batch)


def branches(inputs: Inputs, given: Mapping[str, object], guidance: object, *rest: Any) -> Branches:
    """Read a request and encode it; arguments and errors are those of ``read_branches`` and ``encode``."""
    return encode(inputs, read_branches(inputs, given, guidance, *rest))


def by_name(inputs: Inputs, conditions: object, what: str) -> Mapping[str, object]:
    """Check conditions by name.

    Raises:
        MmgenError: not a dictionary, or one with an unknown condition; ``what`` says where.
    """
    if not isinstance(conditions, Mapping):
        raise MmgenError(what, got=shown(conditions), wanted=BY_NAME)
    for name in conditions:
        if name not in inputs:
            raise unknown(inputs, name)
    return conditions


def unknown(inputs: Inputs, name: object) -> MmgenError:
    """Make the error about an unknown condition."""
    what = f"unknown condition {shown(name)}"
    if remedy := did_you_mean(name, inputs):
        return MmgenError(what, remedy=remedy)
    remedy = "mmgen inspect shows what the bundle takes"
    return MmgenError(what, wanted=either(inputs) or "no condition at all", remedy=remedy)


def _pairs(also: object) -> list[tuple[object, object]]:
    """Check further conditions with the weight of each."""
    pairs: list[Any] = list(also) if isinstance(also, (list, tuple)) else [also]
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        raise MmgenError("also", got=shown(also), wanted=PAIRS, remedy="such as also=[({'prompt': 'a hat'}, 0.5)]")
    if len(pairs) > MOST_ALSO:
        raise MmgenError("also: conditions", got=len(pairs), wanted=f"at most {MOST_ALSO}", remedy=FEWER)
    return [(what, share) for what, share in pairs]


def _instead(inputs: Inputs, values: Values, given: Mapping[str, object], resize: bool) -> Values:
    """Return values by condition name, with others in place of some."""
    return {**values, **{name: _values(inputs[name], value, None, resize) for name, value in given.items()}}


def _values(each: Input, given: object, default: object, resize: bool) -> list[Any]:
    if given is not None:
        return values(each.condition, given, resize=resize)
    if default is None:
        name = each.condition.name
        raise MmgenError(
            f"condition {name!r} is missing", wanted=wanted(each.condition),
            remedy=f"give it in conditions={{{name!r}: ...}}",
        )  # fmt: skip
    return [default]
