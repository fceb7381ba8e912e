"""Bitwise operators between whole numbers and constants as arithmetic, since TensorRT has no bitwise operators.

Quantisers without a codebook (lookup-free, binary) take the bits of a code that way.  Negative numbers come out right
too: ONNX's Mod of whole numbers rounds down.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

OPERATORS = frozenset({"BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"})


def replace_bitwise(graph: ir.Graph) -> None:
    """Replace the bitwise operators in a graph that have a constant operand; the others stay."""
    for node in list(graph):
        if node.op_type not in OPERATORS or node.outputs[0].dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            continue
        x, mask = _operands(node)
        if x is None or (mask is None and node.op_type != "BitwiseNot"):
            continue
        made = _arithmetic(node, x, mask)
        result = made[-1].outputs[0]
        out = node.outputs[0]
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, [out], [result])


def _operands(node: ir.Node) -> tuple[ir.Value | None, np.ndarray | None]:
    """Return the operand that varies, and the other, which is constant."""
    first, *rest = node.inputs
    if not rest:
        return first, None
    for x, other in ((first, rest[0]), (rest[0], first)):
        if other is not None and other.const_value is not None:
            return x, other.const_value.numpy()
    return None, None


def _arithmetic(node: ir.Node, x: ir.Value, mask: np.ndarray | None) -> list[ir.Node]:
    nodes: list[ir.Node] = []
    dtype = x.dtype
    assert dtype is not None

    def add(kind: str, left: ir.Value, right: ir.Value | np.ndarray | int) -> ir.Value:
        value = right
        if not isinstance(value, ir.Value):
            constant = ir.node("Constant", [], {"value": ir.tensor(np.asarray(value, dtype=dtype.numpy()))})
            constant.outputs[0].dtype = dtype
            nodes.append(constant)
            value = constant.outputs[0]
        made = ir.node(kind, [left, value])
        made.outputs[0].dtype = dtype
        made.metadata_props.update(node.metadata_props)
        nodes.append(made)
        return made.outputs[0]

    if mask is None:
        add("Sub", add("Mul", x, -1), 1)  # -x - 1
        return nodes
    both: ir.Value | None = None  # x & mask, bit by bit
    for weight, bits in _bits(mask):
        above = add("Div", add("Sub", x, add("Mod", x, weight)), weight)  # x >> bit
        part = add("Mul", add("Mod", above, 2), bits)
        both = part if both is None else add("Add", both, part)
    both = add("Mul", x, 0) if both is None else both
    match node.op_type:
        case "BitwiseOr":
            add("Sub", add("Add", x, mask), both)
        case "BitwiseXor":
            add("Sub", add("Sub", add("Add", x, mask), both), both)
    return nodes


def _bits(mask: np.ndarray) -> Iterator[tuple[np.ndarray | int, np.ndarray]]:
    """Yield powers of two, and what each adds to the result where it is set; at once where every number has one bit."""
    if (mask > 0).all() and not (mask & (mask - 1)).any():
        yield mask, mask
        return
    for bit in range(63):
        if (mask >> bit & 1).any():
            yield 1 << bit, (mask >> bit & 1) << bit
