"""A request's conditions to the arrays a condition graph takes: checked, batched, one branch per guidance weight."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.bundle import Bundle, Condition
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.text import Encode

Also = tuple[Mapping[str, object], float]  # conditions by name, and how much they weigh beside what is asked
Values = dict[str, list[object]]  # by condition name, one or one for each asked
NO_NULL = "this bundle has no null condition to guide away from"


@dataclass(frozen=True)
class Branches:
    """What the denoiser is asked, G times for B samples."""

    weights: NDArray[np.float32]  # (G,), what is asked first
    inputs: dict[str, NDArray[np.generic]]  # by condition name, (G B, ...), branch by branch
    batch: int  # B


def branches(
    bundle: Bundle,
    encoders: Mapping[str, Encode],
    given: Mapping[str, object],
    guidance: float,
    count: int | None,
    negative: Mapping[str, object] | None = None,
    also: Sequence[Also] = (),
) -> Branches:
    """Encode a request.

    A condition is one value or a list of them; lists have one length n, and every value serves ``count`` samples:
    B = n count.  With D(c) what the denoiser makes of conditions c, guidance w goes from what isn't wanted to what is:

        D(negative) + w [D(asked) - D(negative) + sum_i weight_i (D(also_i) - D(negative))]

    Without ``also`` that is classifier-free guidance (Ho & Salimans 2022, eq. 6, in the form diffusers uses); with it,
    the conjunction of Liu et al. 2022 (eq. 11), where a weight below 0 is a negation.  Branches of weight 0 are left
    out, but for what is asked, which is the first.

    Args:
        given: by condition name.
        negative: conditions in place of the null ones, by name; those left out stay null, or as asked if there is none.
        also: conditions and the weight of each; those left out are as asked.

    Raises:
        MmgenError: an unknown or missing condition, a value of the wrong type, shape or range, lists that differ in
            length, guidance for a bundle that has no null condition, negative conditions without guidance.
    """
    for mentioned in (given, negative or {}, *(conditions for conditions, _ in also)):
        _check_names(bundle, mentioned)
    weight = _weight("guidance", guidance, "a finite number; 1 is none")
    shares = [_weight(f"weight of also[{i}]", share, "a finite number") for i, (_, share) in enumerate(also)]
    null_weight = 1 - weight * (1 + math.fsum(shares))
    if null_weight and not negative and all(c.null is None for c in bundle.conditions):
        raise MmgenError("guidance", got=guidance, wanted="1", remedy=f"{NO_NULL}; say what isn't wanted (negative)")
    if negative and not null_weight:
        raise MmgenError("negative conditions have no effect without guidance", wanted="guidance other than 1")
    asked = {c.name: _values(c, given.get(c.name), c.null) for c in bundle.conditions}
    null: Values = {c.name: asked[c.name] if c.null is None else [c.null] for c in bundle.conditions}
    sets = [(asked, weight), (_instead(bundle, null, negative or {}), null_weight)]
    sets += [
        (_instead(bundle, asked, conditions), weight * share)
        for (conditions, _), share in zip(also, shares, strict=True)
    ]
    used = [sets[0], *((values, w) for values, w in sets[1:] if w)]
    lengths = {len(values) for conditions, _ in used for values in conditions.values()} - {1}
    if len(lengths) > 1:
        raise MmgenError("conditions of different lengths", got=sorted(lengths), remedy="give lists of one length")
    number = lengths.pop() if lengths else 1
    count = 1 if count is None else count
    if count < 1:
        raise MmgenError("count", got=count, wanted="at least 1")
    inputs = {}
    for condition in bundle.conditions:
        rows: list[object] = []
        for conditions, _ in used:
            values = conditions[condition.name]
            rows += [v for v in (values * number if len(values) == 1 else values) for _ in range(count)]
        inputs[condition.name] = _encode(condition, encoders, rows)
    return Branches(np.array([w for _, w in used], np.float32), inputs, number * count)


def _check_names(bundle: Bundle, values: Mapping[str, object]) -> None:
    known = {c.name for c in bundle.conditions}
    for name in values:
        if name not in known:
            names = " or ".join(repr(c.name) for c in bundle.conditions)
            remedy = "mmgen inspect shows what the bundle takes"
            raise MmgenError(f"unknown condition {name!r}", wanted=names or "no condition at all", remedy=remedy)


def _weight(what: str, value: object, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MmgenError(what, got=repr(value), wanted=wanted)
    return float(value)


def _instead(bundle: Bundle, values: Values, given: Mapping[str, object]) -> Values:
    """Values by condition name, with others in place of some."""
    known = {c.name: c for c in bundle.conditions}
    return {**values, **{name: _values(known[name], value, None) for name, value in given.items()}}


def _values(condition: Condition, given: object, default: object) -> list[object]:
    if given is None:
        if default is None:
            raise MmgenError(f"condition {condition.name!r} is missing", wanted=_wanted(condition))
        return [default]
    if isinstance(given, np.ndarray) and condition.kind == "array":
        return list(given) if given.ndim == len(condition.shape) + 1 else [given]
    if isinstance(given, (list, tuple, np.ndarray)):
        if len(given) == 0:
            raise MmgenError(f"condition {condition.name!r} is an empty list", wanted=_wanted(condition))
        return list(given)
    return [given]


def _encode(condition: Condition, encoders: Mapping[str, Encode], values: list[object]) -> NDArray[np.generic]:
    match condition.kind:
        case "text":
            texts = [v for v in values if isinstance(v, str)]
            if len(texts) != len(values):
                raise _wrong(condition, next(v for v in values if not isinstance(v, str)))
            return encoders[condition.name](texts)
        case "class":
            assert condition.count is not None
            for value in values:
                whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
                if not whole or not (0 <= value < condition.count or value == condition.null):  # type: ignore[operator]
                    raise _wrong(condition, value)
            return np.array(values, np.int64)
        case "array":
            arrays = [np.asarray(v) for v in values]
            for array in arrays:
                if array.shape != condition.shape or not np.can_cast(array.dtype, condition.dtype, "same_kind"):
                    raise _wrong(condition, f"{array.dtype} {array.shape}")
                if not np.isfinite(array).all():
                    raise _wrong(condition, "NaN or infinity")
            return np.stack(arrays).astype(condition.dtype)


def _wanted(condition: Condition) -> str:
    match condition.kind:
        case "text":
            return "a string"
        case "class":
            null = f" or {condition.null} for none" if condition.null is not None else ""
            return f"a whole number from 0 to {(condition.count or 1) - 1}{null}"
        case "array":
            return f"{condition.dtype} {condition.shape}"


def _wrong(condition: Condition, value: object) -> MmgenError:
    got = value if isinstance(value, str) and condition.kind == "array" else repr(value)
    return MmgenError(f"condition {condition.name!r}", got=got, wanted=_wanted(condition))
