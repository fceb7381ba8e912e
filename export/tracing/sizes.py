"""Lines where a forward makes a Python number of a size that varies, and so fixes it."""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

from torch.fx.experimental.sym_node import SymNode
from torch.utils._sympy.symbol import SymT, symbol_is_type

from mmgen.export.base import origins


@contextlib.contextmanager
def sizes_watched(lines: list[str]) -> Iterator[None]:
    """Append the lines outside torch that turn one of torch's symbolic sizes into a number, as long as the block lasts.

    Torch's own error says which axis has become one size, but not where.  Of a number that depends on a tensor's values
    it does, since it has none to go on with: those aren't noted.
    """
    original = SymNode.guard_int

    def watch(node: Any, file: str, line: int) -> int:
        if any(not symbol_is_type(symbol, SymT.UNBACKED_INT) for symbol in node.expr.free_symbols):
            lines.append(origins.of_frames(traceback.extract_stack()))
        return original(node, file, line)

    SymNode.guard_int = watch  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        SymNode.guard_int = original  # type: ignore[method-assign]
