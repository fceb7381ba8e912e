"""Which tensors of a step graph don't depend on the latents, and keep the entries of the branch batch apart.

A step evaluates every sample once per guidance branch: the branch batch, R = G B entries along the first axis of what
it computes.  An operator keeps them apart if entry i of its output follows from entry i of its inputs; only through
such operators may work be moved to where the first axis has another meaning or length.  An operator that isn't known
to keep entries apart is assumed to mix them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from mmgen.export.base.operators import values
from mmgen.runtime.storage import tensors as names

Origin = Literal["condition", "timestep"]
Depends = frozenset[Origin]

BRANCH_BATCH = ("B*G", "G*B")  # names that the tracer gives the axis

# fmt: off
ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu",
    "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Tan", "Tanh", "Where", "Xor",
})
REDUCTIONS = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
})
PER_SAMPLE = frozenset({  # defined by the standard for each entry of the first axis
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "DepthToSpace", "GlobalAveragePool",
    "GroupNormalization", "InstanceNormalization", "MaxPool", "SpaceToDepth",
})
# fmt: on


@dataclass(frozen=True)
class BranchAxes:
    """What is known of the tensors of a step graph."""

    depends: Mapping[ir.Value, Depends]  # by tensor (R, ...) whose entries stay apart; empty: an expanded constant
    roots: Mapping[ir.Value, str]  # tensors (R, ...) that are an input of the graph, reshaped; with its name
    constant: frozenset[ir.Value]  # computed from constants alone

    def invariant(self, value: ir.Value) -> bool:
        """Return whether a tensor can be computed before the loop, and isn't a constant."""
        return bool(self.depends.get(value))


def find_branch_axes(graph: ir.Graph, conditioning: Collection[str]) -> BranchAxes:
    """Follow the timestep and the conditioning through a step graph, as far as entries of the branch batch stay apart.

    Args:
        graph: of ``graphs.StepGraph``, traced, with shapes.
        conditioning: names of the inputs (G, B, ...).
    """
    depends: dict[ir.Value, Depends] = {}
    roots: dict[ir.Value, str] = {}
    constant: set[ir.Value] = set(graph.initializers.values())
    sizes: set[ir.Value] = set()  # integers that follow from G and B
    for node in graph:
        inputs = values(node)
        if all(v in constant for v in inputs) and not node.op_type.startswith("Random"):
            constant.update(node.outputs)
        elif node.op_type in ("Shape", "Size"):
            sizes.update(node.outputs)
        elif (root := _root(node, conditioning)) is not None:
            origin: Origin = "timestep" if root == names.TIMESTEP else "condition"
            depends[node.outputs[0]], roots[node.outputs[0]] = frozenset((origin,)), root
        elif _expands(node, constant, sizes):
            depends[node.outputs[0]] = frozenset()
        elif all(v in constant or v in sizes for v in inputs) and all(_whole(v) for v in node.outputs):
            sizes.update(node.outputs)
        elif _keeps_apart(node, depends.keys(), constant, sizes):
            sources = frozenset[Origin]().union(*(depends[v] for v in inputs if v in depends))
            depends.update(dict.fromkeys(node.outputs, sources))
    return BranchAxes(depends, roots, frozenset(constant))


def behind(value: ir.Value) -> tuple[int, ...] | None:
    """Return the sizes of a tensor's axes behind the first; None unless all are known."""
    if value.shape is None or not len(value.shape):
        return None
    sizes = tuple(d for d in value.shape[1:] if isinstance(d, int))
    return sizes if len(sizes) == len(value.shape) - 1 else None


def rank(value: ir.Value) -> int:
    """Return the number of axes; -1 if it is unknown."""
    return -1 if value.shape is None else len(value.shape)


def numbers(value: ir.Value | None) -> list[int] | None:
    """Return a constant's whole numbers; None if it isn't a constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else [int(n) for n in tensor.numpy().reshape(-1)]


def _whole(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_integer()


def _is_branch_batch(value: ir.Value) -> bool:
    """Return whether the shape says that the first axis is the branch batch, and the sizes of the others are known."""
    if behind(value) is None or value.shape is None:
        return False
    first = value.shape[0]
    return isinstance(first, ir.SymbolicDim) and str(first.value).replace(" ", "") in BRANCH_BATCH


def _root(node: ir.Node, conditioning: Collection[str]) -> str | None:
    """Return the name of the graph's input that a node expands or reshapes to the branch batch."""
    source, made = node.inputs[0] if node.inputs else None, node.outputs[0]
    if source is None or not source.is_graph_input() or not _is_branch_batch(made):
        return None
    if node.op_type == "Expand" and source.name == names.TIMESTEP and rank(made) == 1:
        return source.name
    if node.op_type == "Reshape" and source.name in conditioning and source.shape is not None:
        rest = source.shape[2:]
        if all(isinstance(d, int) for d in rest) and math.prod(rest) == math.prod(behind(made) or ()):
            return source.name
    return None


def _expands(node: ir.Node, constant: Collection[ir.Value], sizes: Collection[ir.Value]) -> bool:
    """Return whether a node repeats a constant along the branch batch."""
    made = node.outputs[0]
    match node.op_type, list(node.inputs):
        case "Expand", [source, shape] if source is not None:
            repeats = rank(source) < rank(made) or (source.shape is not None and source.shape[0] == 1)
            return source in constant and shape in sizes and repeats and _is_branch_batch(made)
        case "ConstantOfShape", [shape]:
            return shape in sizes and _is_branch_batch(made)
    return False


def _keeps_apart(
    node: ir.Node, branched: Collection[ir.Value], constant: Collection[ir.Value], sizes: Collection[ir.Value]
) -> bool:
    inputs = values(node)
    moving = [v for v in inputs if v in branched]
    known = all(v in branched or v in constant for v in inputs) or node.op_type in ("Reshape", "Expand")
    if not moving or not known or node.domain not in ("", "ai.onnx") or any(behind(v) is None for v in node.outputs):
        return False
    return _rule(node, moving, lambda v: v in branched, lambda v: v in sizes)


def _rule(
    node: ir.Node,
    moving: list[ir.Value],
    is_branched: Callable[[ir.Value | None], bool],
    is_size: Callable[[ir.Value | None], bool],
) -> bool:
    """Return whether an operator keeps entries of the branch batch apart, by its definition in the standard.

    Args:
        node: its inputs are tensors (R, ...) or constants; the shape of a Reshape or an Expand may be something else.
        moving: the inputs (R, ...).
        is_branched: whether a tensor is (R, ...).
        is_size: whether integers follow from G and B.
    """
    data, made = node.inputs[0], node.outputs[0]
    rest = {rank(v) for v in moving}
    same_rank = rest == {rank(made)} and rank(made) > 0
    first_moves = data is not None and is_branched(data)
    alone = first_moves and len(moving) == 1
    axis = node.attributes.get_int("axis", -1)
    match node.op_type:
        case op if op in ELEMENTWISE:
            others = [v for v in values(node) if not is_branched(v)]
            return same_rank and all(_fits_every_entry(v, rank(made)) for v in others)
        case op if op in REDUCTIONS:
            known = numbers(node.inputs[1]) if len(node.inputs) > 1 else list(node.attributes.get_ints("axes", ()))
            return alone and bool(known) and _behind_first(known, data)
        case op if op in PER_SAMPLE:
            return alone and rank(made) >= 3
        case "Softmax" | "LogSoftmax" | "LayerNormalization":
            return alone and _behind_first([axis], data)
        case "ArgMax" | "ArgMin":
            return alone and _behind_first([node.attributes.get_int("axis", 0)], data)
        case "MatMul":
            return _product(node, made, is_branched)
        case "Gemm":
            added = node.inputs[2] if len(node.inputs) > 2 else None
            fits = added is None or is_branched(added) or _fits_every_entry(added, 2)
            return first_moves and not is_branched(node.inputs[1]) and not node.attributes.get_int("transA", 0) and fits
        case "Transpose":
            order = node.attributes.get_ints("perm", ())
            return len(order) > 0 and order[0] == 0
        case "Reshape":
            return alone and _reshapes_apart(node, is_size)
        case "Expand":
            shape = numbers(node.inputs[1])
            if shape is None:
                return alone and same_rank and is_size(node.inputs[1]) and _is_branch_batch(made)
            return alone and same_rank and (len(shape) < rank(made) or shape[0] == 1)
        case "Flatten":
            return node.attributes.get_int("axis", 1) == 1
        case "Concat":
            return all(is_branched(v) for v in values(node)) and _behind_first([axis], data)
        case "Split":
            return alone and _behind_first([node.attributes.get_int("axis", 0)], data)
        case "Gather":
            along = node.attributes.get_int("axis", 0)
            return alone and _behind_first([along], data) if first_moves else along == 0 and len(moving) == 1
        case "Slice":
            return alone and len(node.inputs) > 3 and _behind_first(numbers(node.inputs[3]), data)
        case "Squeeze":
            return alone and len(node.inputs) > 1 and _behind_first(numbers(node.inputs[1]), data)
        case "Unsqueeze":
            return alone and _behind_first(numbers(node.inputs[1]), made)
        case "CumSum":
            return alone and _behind_first(numbers(node.inputs[1]), data)
        case "Pad":
            pads = numbers(node.inputs[1])
            everywhere = len(node.inputs) < 4 or node.inputs[3] is None  # pads for every axis
            return alone and everywhere and pads is not None and pads[0] == pads[len(pads) // 2] == 0
        case "Tile":
            repeats = numbers(node.inputs[1])
            return alone and repeats is not None and repeats[0] == 1
    return False


def _product(node: ir.Node, made: ir.Value, is_branched: Callable[[ir.Value | None], bool]) -> bool:
    """Return whether a MatMul keeps entries apart: the branch batch must be rows of matrices or a stack, not summed."""
    left, right = node.inputs
    assert left is not None and right is not None
    if not is_branched(right):
        return rank(left) == rank(made) >= 2 and (rank(right) <= 2 or _fits_every_entry(right, rank(made)))
    if rank(right) != rank(made) or rank(right) < 3:
        return False
    return rank(left) == rank(made) if is_branched(left) else _fits_every_entry(left, rank(made))


def _reshapes_apart(node: ir.Node, is_size: Callable[[ir.Value | None], bool]) -> bool:
    data, shape, made = node.inputs[0], node.inputs[1], node.outputs[0]
    assert data is not None and shape is not None
    before, after = behind(data), behind(made)
    if before is None or after is None or math.prod(before) != math.prod(after):
        return False
    target = numbers(shape)
    return _is_branch_batch(made) and is_size(shape) if target is None else target[0] in (-1, 0)


def _fits_every_entry(value: ir.Value, ranks: int) -> bool:
    """Return whether broadcasting gives every entry the same part of a constant."""
    return 0 <= rank(value) < ranks or (rank(value) == ranks and value.shape is not None and value.shape[0] == 1)


def _behind_first(axes: Sequence[int] | None, value: ir.Value | None) -> bool:
    """Return whether axes are known and none of them is the first."""
    if axes is None or value is None or value.shape is None:
        return False
    return all((axis if axis >= 0 else axis + len(value.shape)) > 0 for axis in axes)
