"""Requests to validate with: the model's own examples, or made-up ones at the scale that the model was trained on."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import media_examples
from mmgen.runtime.storage.schema import Condition

EXTREME = 4.0  # how many times as far from the mean as an example an unusual request is
PLAUSIBLE = 10.0  # deviations from the mean within which zero is a plausible value
SMALLEST = 1e-12
# Names of statistics in a module that normalises: the middle and the spread.
_PAIRS = (("mean", "std"), ("mu", "sigma"), ("loc", "scale"), ("mean", "var"), ("min", "max"), ("offset", "scale"))

Scale = tuple[NDArray[np.float32], NDArray[np.float32]]  # mean and deviation, of the shape of a condition


def examples(model: Model, count: int, *, negative: bool = False) -> dict[str, Any]:
    """Return each condition's values for ``count`` samples, as ``generate`` takes them; ``negative``: the next ones."""
    rng = np.random.default_rng(int(negative))
    values: dict[str, Any] = {}
    for condition in model.conditions:
        given = [request[condition.name] for request in model.examples if condition.name in request]
        turns = range(int(negative), count + int(negative))
        rows = [given[i % len(given)] if given else _made_up(model, condition, i, count, rng) for i in turns]
        values[condition.name] = rows if condition.kind in ("text", "class") else np.stack(rows)
    return values


def made_up(model: Model) -> tuple[str, ...]:
    """Return the names of the conditions, neither text nor classes, of which the model gives no example."""
    given = {name for request in model.examples for name in request}
    return tuple(c.name for c in model.conditions if c.kind not in ("text", "class") and c.name not in given)


def unusual(model: Model, inputs: dict[str, NDArray[Any]]) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Yield conditions (R, ...) whose arrays of fractions are all zero, and such that are far from the mean.

    A zero that the model's own statistics rule out, as no robot is at 0 where it was always at 1000, is the mean.
    """
    arrays = {c.tensor: c for c in model.conditions if c.kind == "array" and np.dtype(c.dtype).kind == "f"}
    if not arrays:
        return
    zero, far = {}, {}
    for name, condition in arrays.items():
        x = inputs[name]
        mean, deviation = scale_of(model, condition) or (np.zeros(condition.shape), np.ones(condition.shape))
        zero[name] = np.broadcast_to(np.where(np.abs(mean) <= PLAUSIBLE * deviation, 0, mean), x.shape).astype(x.dtype)
        far[name] = (mean + EXTREME * (x - mean)).astype(x.dtype)
    yield "arrays of zeros", inputs | zero
    yield f"arrays {EXTREME:g} times as far from the mean", inputs | far


def scale_of(model: Model, condition: Condition) -> Scale | None:
    """Find the mean and deviation of an array in the statistics of a model's own modules; None if there are none.

    A pair of tensors counts whose names differ in ``mean`` and ``std`` or the like, and whose shape is the condition's,
    or that of its last axes.  Those with the condition's name in theirs come first.
    """
    modules = [module for module in (model.condition, model.denoiser) if module is not None]
    tensors = {name: tensor for module in modules for name, tensor in _statistics(module)}
    found = []
    for name, first in tensors.items():
        for middle, spread in _PAIRS:
            other = re.sub(rf"(?<![a-z]){middle}(?![a-z])", spread, name)
            second = tensors.get(other) if other != name else None
            if second is not None and (scale := _scale(middle, spread, first, second, condition)):
                found.append((condition.name not in name, scale))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _statistics(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_buffers()
    yield from module.named_parameters()


def _scale(middle: str, spread: str, first: torch.Tensor, second: torch.Tensor, condition: Condition) -> Scale | None:
    shapes = {tuple(size for size in tensor.shape if size != 1) for tensor in (first, second)}
    wanted = tuple(size for size in condition.shape if size != 1)
    if len(shapes) != 1 or not (shape := shapes.pop()) or wanted[len(wanted) - len(shape) :] != shape:
        return None
    a, b = (tensor.detach().float().numpy().reshape(shape) for tensor in (first, second))
    match middle, spread:
        case "min", "max":
            mean, deviation = (a + b) / 2, (b - a) / 4
        case "offset", "scale":  # normalised = scale x + offset
            mean, deviation = -a / np.where(b == 0, 1, b), 1 / np.where(b == 0, 1, b) / 2
        case _, "var":
            mean, deviation = a, np.sqrt(np.maximum(b, 0))
        case _:
            mean, deviation = a, b
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > SMALLEST).any()):
        return None
    full = tuple(np.broadcast_to(x, wanted).reshape(condition.shape).astype(np.float32) for x in (mean, deviation))
    return full[0], full[1]


def _made_up(model: Model, condition: Condition, index: int, count: int, rng: np.random.Generator) -> Any:
    if condition.media is not None:
        return media_examples(model, condition, count + 1)[index]
    match condition.kind:
        case "text":
            return ("a photo", "two lines of text")[index % 2]
        case "class":
            classes = condition.count or 1
            return classes * (2 * index + 1) // (2 * count) % classes
        case "array" if np.issubdtype(np.dtype(condition.dtype), np.floating):
            mean, deviation = scale_of(model, condition) or (np.float32(0), np.float32(1))
            return (mean + deviation * rng.standard_normal(condition.shape)).astype(condition.dtype)
        case _:
            return np.zeros(condition.shape, condition.dtype)
