"""Lines where a forward makes a Python number of a size that varies, and so fixes it."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch

from mmgen.export import origins


@contextlib.contextmanager
def sizes_watched(lines: list[str]) -> Iterator[None]:
    """Append the lines outside torch that turn one of torch's symbolic sizes into a number, as long as the block lasts.

    Torch's own error says which axis has become one size, but not where.
    """
    watched = {name: vars(torch.SymInt)[name] for name in ("__int__", "__index__")}

    def watch(original: Any) -> Any:
        def convert(size: Any) -> Any:
            if size.node.is_symbolic() and not size.node.is_constant():
                lines.append(origins.of_frames(traceback.extract_stack()))
            return original(size)

        return convert

    for name, original in watched.items():
        setattr(torch.SymInt, name, watch(original))
    try:
        yield
    finally:
        for name, original in watched.items():
            setattr(torch.SymInt, name, original)
