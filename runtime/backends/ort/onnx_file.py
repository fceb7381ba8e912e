"""The part of ONNX's file format that is read and changed here.

The package ``onnx`` does more and is larger than mmgen's runtime, so a machine that only generates is spared it.

A model is a protobuf message, and ONNX Runtime is installed with protobuf.  Fields that aren't named here are kept.
"""

import functools
from typing import Any

FLOAT, INT8, FLOAT16 = 1, 3, 10  # TensorProto.DataType
INT, GRAPH, GRAPHS = 2, 5, 10  # AttributeProto.AttributeType
FIELDS = {  # of onnx.proto: number and type, with ``*`` where it is repeated
    "ModelProto": {"graph": (7, "GraphProto"), "functions": (25, "FunctionProto*")},
    "FunctionProto": {},
    "GraphProto": {
        "node": (1, "NodeProto*"),
        "initializer": (5, "TensorProto*"),
        "input": (11, "ValueInfoProto*"),
        "output": (12, "ValueInfoProto*"),
        "value_info": (13, "ValueInfoProto*"),
    },
    "NodeProto": {
        "input": (1, "string*"),
        "output": (2, "string*"),
        "op_type": (4, "string"),
        "attribute": (5, "AttributeProto*"),
    },
    "AttributeProto": {"name": (1, "string"), "i": (3, "int64"), "t": (5, "TensorProto"), "type": (20, "int32")},
    "TensorProto": {
        "dims": (1, "int64*"),
        "data_type": (2, "int32"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "external_data": (13, "StringStringEntryProto*"),
    },
    "StringStringEntryProto": {"key": (1, "string"), "value": (2, "string")},
    "ValueInfoProto": {"name": (1, "string"), "type": (2, "TypeProto")},
    "TypeProto": {"tensor_type": (1, "TensorTypeProto")},
    "TensorTypeProto": {"elem_type": (1, "int32")},
}


def read_model(content: bytes) -> Any:
    """Read a ``ModelProto``.

    None if there are functions, or graphs inside nodes, since nothing here looks into them; and if it isn't an ONNX
    file, for which ONNX Runtime has the better error.
    """
    from google.protobuf.message import DecodeError

    try:
        model = _model_class().FromString(content)
    except DecodeError:
        return None
    nested = any(attribute.type in (GRAPH, GRAPHS) for node in model.graph.node for attribute in node.attribute)
    return None if nested or model.functions else model


def add_node(graph: Any, kind: str, inputs: list[str], outputs: list[str], **attributes: int) -> None:
    """Append a node to a graph."""
    node = graph.node.add(op_type=kind, input=inputs, output=outputs)
    for name, value in attributes.items():
        node.attribute.add(name=name, i=value, type=INT)


@functools.cache
def _model_class() -> Any:
    """Make the message class, separate from the messages of other packages that are imported."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    scalars = {name: getattr(field, f"TYPE_{name.upper()}") for name in ("int32", "int64", "string", "bytes")}
    file = descriptor_pb2.FileDescriptorProto(name="mmgen.proto", package="mmgen", syntax="proto2")
    for message, fields in FIELDS.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in fields.items():
            label = field.LABEL_REPEATED if kind.endswith("*") else field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            added = described.field.add(name=name, number=number, label=label)
            added.type = scalars.get(kind, field.TYPE_MESSAGE)
            if kind not in scalars:
                added.type_name = f".mmgen.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mmgen.ModelProto"))
