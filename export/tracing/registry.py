"""Torch's registry of ONNX translations, built once: by itself, torch builds it anew for every graph that it exports.

That takes as long as half of a small graph's translation, since it reads the source of all 500 functions in it.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def registry_kept() -> Iterator[None]:
    """Let exports share what the registry is filled with, as long as the block lasts; each may add its own to a copy.

    Where a release of torch has it elsewhere, exports only take longer.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    fill = ONNXRegistry.from_torchlib

    def from_torchlib(*arguments: Any, **options: Any) -> Any:
        kept = _filled(fill, *arguments, **options)
        registry = copy.copy(kept)
        registry.functions = {target: [*found] for target, found in kept.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)  # type: ignore[method-assign]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = fill  # type: ignore[method-assign]


@functools.cache
def _filled(fill: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return fill(*arguments, **options)
