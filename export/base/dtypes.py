"""The element types of an ONNX graph: what every tensor is, and what an operator accepts."""

import functools
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from mmgen.runtime.base.errors import MmgenError

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def load(path: Path) -> ir.Model:
    """Read an ONNX file; weights stay on disk, and every tensor whose type and shape can be inferred has them.

    Raises:
        MmgenError: there is no such file, or it isn't ONNX.
    """
    try:
        model = ir.load(path)
    except (OSError, DecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise MmgenError(f"{path} can't be read as ONNX ({reason})", remedy="export again") from error
    stated = ir.to_proto(model)
    del stated.graph.value_info[:]  # inferred afresh: a graph may say one thing and be another
    try:
        inferred = onnx.shape_inference.infer_shapes(stated).graph
    except onnx.shape_inference.InferenceError:
        return model  # with the types it states; whoever checks the graph will say what is wrong with it
    types = {v.name: v.type for v in inferred.value_info}
    for node in model.graph:
        for value in node.outputs:
            if found := types.get(value.name or ""):
                value.type = ir.serde.deserialize_type_proto_for_type(found)
                if value.shape is None:
                    value.shape = ir.serde.deserialize_type_proto_for_shape(found)
    return model


def half_slots(node: ir.Node, opset: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find which of a node's float32 inputs and outputs could be float16, by position.

    There are none for an operator that takes or makes sequences, whose items would have to change with it, nor for one
    that adds up what it scatters: the standard allows float16 there, but ONNX Runtime on a CPU has no such kernel.
    """
    schema = _schema(node.op_type, opset) if node.domain == "" else None
    if schema is None or any(value is not None and _holds_tensors(value) for value in (*node.inputs, *node.outputs)):
        return (), ()
    if node.attributes.get_string("reduction", "none") != "none" and node.op_type.startswith("Scatter"):
        return (), ()
    halves = {c.type_param_str for c in schema.type_constraints if "tensor(float16)" in c.allowed_type_strs}
    inputs, outputs = formal_types(node, opset)
    return (
        tuple(i for i, (v, t) in enumerate(zip(node.inputs, inputs, strict=True)) if is_single(v) and t in halves),
        tuple(i for i, (v, t) in enumerate(zip(node.outputs, outputs, strict=True)) if is_single(v) and t in halves),
    )


def is_single(value: ir.Value | None) -> bool:
    """Return whether a value is a float32 tensor."""
    return value is not None and not _holds_tensors(value) and value.dtype == ir.DataType.FLOAT


def formal_types(node: ir.Node, opset: int) -> tuple[list[str], list[str]]:
    """Return the types that the standard gives a node's inputs and outputs: a variable such as T, or tensor(int64).

    "" where the standard doesn't say, or lets each of several variadic arguments have a type of its own.
    """
    schema = _schema(node.op_type, opset) if node.domain == "" else None
    if schema is None:
        return [""] * len(node.inputs), [""] * len(node.outputs)
    return _spread(schema.inputs, len(node.inputs)), _spread(schema.outputs, len(node.outputs))


def mixed_types(model: ir.Model) -> list[tuple[ir.Node, str]]:
    """Find nodes that combine tensors of different types where the standard, or TensorRT, wants one.

    Returns:
        Pairs of a node and what is mixed in it, as "T: float32 a, float16 b".
    """
    opset = model.opset_imports.get("", 0)
    found = []
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        inputs, outputs = formal_types(node, opset)
        groups: dict[str, dict[ir.DataType, str]] = {}  # by type variable: the first tensor of each type
        for value, formal in zip((*node.inputs, *node.outputs), (*inputs, *outputs), strict=True):
            if value is None or value.dtype is None or not formal or "(" in formal:
                continue
            if node.op_type == "Pow" and value.dtype in FLOATS:
                formal = "T"  # the standard lets the exponent differ; TensorRT doesn't
            groups.setdefault(formal, {}).setdefault(value.dtype, value.name or "")
        for formal, types in groups.items():
            if len(types) > 1:
                parts = ", ".join(f"{name_of(dtype)} {name}" for dtype, name in types.items())
                found.append((node, f"{formal}: {parts}"))
    return found


def name_of(dtype: ir.DataType) -> str:
    """Return numpy's name for a type."""
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(dtype.name, dtype.name.lower())


def _holds_tensors(value: ir.Value) -> bool:
    """Return whether a value is a sequence or an optional value rather than a tensor."""
    return isinstance(value.type, (ir.SequenceType, ir.OptionalType))


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _spread(formal: "Sequence[onnx.defs.OpSchema.FormalParameter]", count: int) -> list[str]:
    """Return the types of ``count`` arguments; the last formal one may stand for many."""
    types = [p.type_str for p in formal[:count]]
    if len(types) < count and formal:
        last = formal[-1]
        same = last.option == onnx.defs.OpSchema.FormalParameterOption.Variadic and last.is_homogeneous
        types += [last.type_str if same else ""] * (count - len(types))
    return types + [""] * (count - len(types))
