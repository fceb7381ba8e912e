"""A request's conditions to the arrays a condition graph takes: checked, batched, one branch per guidance weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.bundle import Bundle, Condition
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.text import Encode


@dataclass(frozen=True)
class Branches:
    """What the denoiser is asked, G times for B samples."""

    weights: NDArray[np.float32]  # (G,)
    inputs: dict[str, NDArray[np.generic]]  # by condition name, (G B, ...), branch by branch
    batch: int  # B


def branches(
    bundle: Bundle, encoders: Mapping[str, Encode], given: Mapping[str, object], guidance: float, count: int | None
) -> Branches:
    """Encode a request.

    A condition is one value or a list of them; lists have one length n, and every value serves ``count`` samples:
    B = n count.  With guidance w != 1 there are two branches, null and asked, weighted (1 - w, w)
    (Ho & Salimans 2022, eq. 6, in the form diffusers uses); conditions without a null value are the same in both.

    Raises:
        MmgenError: an unknown or missing condition, a value of the wrong type, shape or range, lists that differ in
            length, guidance for a bundle that has no null condition.
    """
    known = {c.name: c for c in bundle.conditions}
    for name in given:
        if name not in known:
            raise MmgenError(
                f"unknown condition {name!r}", wanted=" or ".join(map(repr, known)) or "no condition at all",
                remedy="mmgen inspect shows what the bundle takes",
            )  # fmt: skip
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
        raise MmgenError("guidance", got=repr(guidance), wanted="a finite number; 1 is none")
    guided = guidance != 1
    if guided and not any(c.null is not None for c in bundle.conditions):
        raise MmgenError(
            "guidance", got=guidance, wanted="1", remedy="this bundle has no null condition to guide away from"
        )
    lists = {c.name: _values(c, given.get(c.name)) for c in bundle.conditions}
    lengths = {len(values) for values in lists.values()} - {1}
    if len(lengths) > 1:
        raise MmgenError("conditions of different lengths", got=sorted(lengths), remedy="give lists of one length")
    number = lengths.pop() if lengths else 1
    count = 1 if count is None else count
    if count < 1:
        raise MmgenError("count", got=count, wanted="at least 1")
    inputs = {}
    for condition in bundle.conditions:
        values = lists[condition.name]
        asked = [v for v in (values * number if len(values) == 1 else values) for _ in range(count)]
        rows = [condition.null if condition.null is not None else v for v in asked] + asked if guided else asked
        inputs[condition.name] = _encode(condition, encoders, rows)
    weights = np.array([1 - guidance, guidance] if guided else [1], np.float32)
    return Branches(weights, inputs, number * count)


def _values(condition: Condition, given: object) -> list[object]:
    if given is None:
        if condition.null is None:
            raise MmgenError(f"condition {condition.name!r} is missing", wanted=_wanted(condition))
        return [condition.null]
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
