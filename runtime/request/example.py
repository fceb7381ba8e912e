"""A request that any bundle can be tried with: what its golden request asks for, or else nothing in particular."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmgen.runtime.request.request import Request
from mmgen.runtime.storage.golden import golden_of
from mmgen.runtime.storage.schema import Bundle, Condition


def example(bundle: Bundle) -> Request:
    """Return a request for one sample with a bundle's defaults.

    Without a golden request, conditions that must be there are empty texts, the first class and zeros.

    Raises:
        MmgenError: the golden request can't be read.
    """
    if bundle.golden_sha256 is not None:
        conditions, negative = example_conditions(bundle, {}), example_negative(bundle, None)
        return Request(conditions=_first(conditions), negative=_first(negative))
    anything = {c.name: [_anything(c)] for c in bundle.conditions if c.null is None}
    guided = bundle.defaults.guidance != 1 and len(anything) == len(bundle.conditions)
    return Request(conditions=anything, negative=anything if guided else {})


def example_conditions(bundle: Bundle, given: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Return those of the bundle's golden request, if none are given; else the given ones, and what must be there."""
    needed = {c.name for c in bundle.conditions if not given or c.null is None} - set(given)
    if not needed or bundle.golden_sha256 is None:
        return dict(given)
    golden = golden_of(bundle).conditions
    return {**{name: list(values) for name, values in golden.items() if name in needed}, **given}


def example_negative(bundle: Bundle, guidance: float | None) -> dict[str, Sequence[Any]]:
    """Return what the golden request guides away from, where the bundle has nothing else for guidance."""
    weight = bundle.defaults.guidance if guidance is None else guidance
    if weight == 1 or bundle.golden_sha256 is None or any(c.null is not None for c in bundle.conditions):
        return {}
    return {name: list(values) for name, values in golden_of(bundle).negative.items()}


def _first(conditions: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    return {name: values[:1] for name, values in conditions.items()}


def _anything(condition: Condition) -> Any:
    match condition.kind:
        case "text":
            return ""
        case "class":
            return 0
        case "array":
            return np.zeros(condition.shape, condition.dtype)
        case "image" | "video" | "audio" | "series":
            assert condition.media is not None
            return np.zeros(condition.media.shape, condition.media.dtype)
