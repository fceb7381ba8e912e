"""How much work a graph is: floating-point operations, and bytes of weights that it reads."""

import math
import re
from collections.abc import Iterable

import onnx_ir as ir

from mmgen.export.base.operators import CONVOLUTIONS, PRODUCTS


def operations(nodes: Iterable[ir.Node]) -> int:
    """Count operations of products and convolutions, for one entry; a multiplication and an addition are two."""
    return sum(_operations(node) for node in nodes)


def operations_by_axes(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """Count the same by the named axes of what a node makes, such as "B G", or "" where it has none."""
    found: dict[str, int] = {}
    for node in nodes:
        if count := _operations(node):
            axes = _axes(node.outputs[0])
            found[axes] = found.get(axes, 0) + count
    return found


def weight_bytes(graph: ir.Graph) -> int:
    """Count the bytes of weights that a run reads; of a table that is looked up, only the entries taken from it."""
    return sum(_read_bytes(weight) for weight in graph.initializers.values() if weight.uses())


def _read_bytes(weight: ir.Value) -> int:
    size = 0 if weight.const_value is None else weight.const_value.nbytes
    uses = weight.uses()
    if all(node.op_type == "Gather" and slot == 0 for node, slot in uses):
        return min(size, int(sum(entry_bytes(node.outputs[0]) for node, _ in uses)))
    return size


def _axes(value: ir.Value) -> str:
    named = (str(d) for d in value.shape or () if not isinstance(d, int))
    return " ".join(sorted({axis for name in named for axis in re.findall(r"[A-Z]\b", name)}))


def _operations(node: ir.Node) -> int:
    made = elements(node.outputs[0])
    if node.op_type == "Gemm":
        (left, right), turned = node.inputs[:2], node.attributes.get_int("transB", 0)
        return 2 * made * _size(right, 1 if turned else 0) if left is not None else 0
    if node.op_type in PRODUCTS:
        return 2 * made * _size(node.inputs[0], -1)
    if node.op_type in CONVOLUTIONS and node.inputs[1] is not None:
        kernel = elements(node.inputs[1])
        return 2 * made * kernel // max(_size(node.inputs[1], 0), 1)
    return 0


def entry_bytes(value: ir.Value) -> int:
    """Count the bytes of one entry of a tensor's first axis: (R, ...)."""
    return elements(value) * (value.dtype.itemsize if value.dtype is not None else 4)  # type: ignore[return-value]


def elements(value: ir.Value | None) -> int:
    """Count the elements of a tensor with B = G = 1; 0: unknown."""
    if value is None or value.shape is None:
        return 0
    return math.prod(d if isinstance(d, int) else 1 for d in value.shape)


def _size(value: ir.Value | None, axis: int) -> int:
    if value is None or value.shape is None or not len(value.shape):
        return 0
    size = value.shape[axis]
    return size if isinstance(size, int) else 1
