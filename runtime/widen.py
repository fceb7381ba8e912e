"""Half-precision graphs for processors that compute in float32: the same arithmetic, nothing rounded on the way.

ONNX Runtime has few float16 kernels for processors.  It puts casts around other operators, which keep it from fusing
them, and takes some apart, such as Softmax.  A widened graph has float32 inside.  What comes from outside in float16 is
cast once: weights when a session is made, inputs first of all, outputs at the end.
"""

import functools
from typing import Any

FLOAT, FLOAT16 = 1, 10  # TensorProto.DataType
INT, GRAPH, GRAPHS = 2, 5, 10  # AttributeProto.AttributeType
# The fields of onnx.proto that are used here: number, type, and ``*`` where it is repeated.  Others are kept unread.
FIELDS = {
    "ModelProto": {"graph": (7, "GraphProto"), "functions": (25, "FunctionProto*")},
    "GraphProto": {
        "node": (1, "NodeProto*"),
        "initializer": (5, "TensorProto*"),
        "input": (11, "ValueInfoProto*"),
        "output": (12, "ValueInfoProto*"),
        "value_info": (13, "ValueInfoProto*"),
    },
    "FunctionProto": {},
    "NodeProto": {
        "input": (1, "string*"),
        "output": (2, "string*"),
        "op_type": (4, "string"),
        "attribute": (5, "AttributeProto*"),
    },
    "AttributeProto": {"name": (1, "string"), "i": (3, "int64"), "t": (5, "TensorProto"), "type": (20, "int32")},
    "TensorProto": {"data_type": (2, "int32"), "name": (8, "string")},
    "ValueInfoProto": {"name": (1, "string"), "type": (2, "TypeProto")},
    "TypeProto": {"tensor_type": (1, "TensorTypeProto")},
    "TensorTypeProto": {"elem_type": (1, "int32")},
}


def widen(model: bytes) -> bytes | None:
    """A graph that computes in float32 where this one does in float16; its inputs and outputs keep their types.

    Args:
        model: an ONNX file; weights may lie beside it.

    Returns:
        The file's new content; None if there is no float16 in it, there are graphs or functions inside its nodes, or it
        is no ONNX file, which ONNX Runtime can say better.
    """
    from google.protobuf.message import DecodeError

    try:
        parsed = _model_class().FromString(model)
    except DecodeError:
        return None
    graph = parsed.graph
    nodes = list(graph.node)
    if parsed.functions or any(a.type in (GRAPH, GRAPHS) for node in nodes for a in node.attribute):
        return None
    given = [weight.name for weight in graph.initializer if weight.data_type == FLOAT16]
    given += [value.name for value in graph.input if _is_half(value)]
    made = {name for node in nodes if _holds_half(node) for name in node.output}
    told = [value.name for value in graph.output if _is_half(value) and value.name not in made]
    wide = {name: f"{name}.float32" for name in (*given, *made, *told)}
    if not wide:
        return None

    for value in graph.value_info:  # without their types and shapes, loading takes twice as long
        if _is_half(value) and value.name not in wide:
            value.type.tensor_type.elem_type = FLOAT
    del graph.node[:]
    for name in given:
        _add_cast(graph, name, wide[name], FLOAT)
    for node in nodes:
        constant = _holds_half(node)
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == FLOAT16:
                attribute.i = FLOAT
        node.input[:] = [wide.get(name, name) for name in node.input]
        if not constant:
            node.output[:] = [wide.get(name, name) for name in node.output]
        graph.node.append(node)
        for name in node.output if constant else ():
            _add_cast(graph, name, wide[name], FLOAT)
    for name in told:
        _add_cast(graph, wide[name], name, FLOAT16)
    return bytes(parsed.SerializeToString())


def _is_half(value: Any) -> bool:
    """Whether an input or an output is float16."""
    return bool(value.type.tensor_type.elem_type == FLOAT16)


def _holds_half(node: Any) -> bool:
    """Whether a node makes what a float16 tensor in it says, such as Constant."""
    return any(attribute.t.data_type == FLOAT16 for attribute in node.attribute)


def _add_cast(graph: Any, source: str, target: str, to: int) -> None:
    node = graph.node.add(op_type="Cast", input=[source], output=[target])
    node.attribute.add(name="to", i=to, type=INT)


@functools.cache
def _model_class() -> Any:
    """``ModelProto`` of ``FIELDS``, apart from those of other packages that are imported."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="mmgen.proto", package="mmgen", syntax="proto2")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            scalar = {"int32": field.TYPE_INT32, "int64": field.TYPE_INT64, "string": field.TYPE_STRING}
            label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            added = described.field.add(name=name, number=number, label=label)
            kind = kind.rstrip("*")
            added.type = scalar.get(kind, field.TYPE_MESSAGE)
            if kind not in scalar:
                added.type_name = f".mmgen.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmgen.ModelProto"))
