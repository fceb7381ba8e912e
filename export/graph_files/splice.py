"""The graphs of ONNX files in place of the calls that torch traced.

A call becomes a node of a function; the function is the file's graph, whose float32 weights are the last inputs.  What
inlines functions, makes names unique and merges metadata is onnx_ir.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import values

from mmgen.export.graph_files.module import opened
from mmgen.export.graph_files.reading import OPSET

DOMAIN = "mmgen.files"
TYPES = ["tensor(float)", "tensor(int64)", "tensor(int32)", "tensor(bool)"]


def translations() -> Mapping[Callable[..., Any], Callable[..., Any]]:
    """Return the translation of a call of a file, as ``torch.onnx.export`` takes them."""
    return {torch.ops.mmgen.onnx_file.default: call}


def call(inputs: Sequence[Any], weights: Sequence[Any], file: str) -> Any:
    """Translate a call of a file to a node of that name; returns a tuple of its outputs."""
    kinds = [f"T{i}" for i in range(len(inputs) + len(weights))]
    made = [f"U{i}" for i in range(len(opened(file).outputs))]
    schema = OpSchema(
        file,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter(f"x{i}", kind) for i, kind in enumerate(kinds)],
        outputs=[OpSchema.FormalParameter(f"y{i}", kind) for i, kind in enumerate(made)],
        type_constraints=[(kind, TYPES, "") for kind in (*kinds, *made)],
    )
    found = values.Op(values.Opset(DOMAIN, 1), file, schema)(*inputs, *weights)
    return found if isinstance(found, Sequence) else (found,)


def add_files(model: ir.Model) -> None:
    """Add to a traced model, as functions, the files that it calls; whoever simplifies it inlines them."""
    for node in model.graph:
        identifier = node.op_identifier()
        if node.domain == DOMAIN and identifier not in model.functions:
            model.functions[identifier] = _function(node.op_type)


def _function(file: str) -> ir.Function:
    """Return a file's graph as a function of its inputs and then its float32 weights."""
    module = opened(file)
    graph = module.file.model.clone().graph
    known = {value.name: value for value in graph.inputs}
    weights = [graph.initializers[name] for name in module.weights]
    for value in list(graph.initializers.values()):
        del graph.initializers[value.name or ""]
        if value not in weights and value.const_value is not None:
            constant = ir.node("Constant", [], {"value": value.const_value})
            ir.convenience.replace_all_uses_with(value, constant.outputs[0])
            graph.insert_before(graph[0], constant)
        value.const_value = None
    graph.inputs[:] = [*(known[spec.name] for spec in module.inputs), *weights]
    outputs = {value.name: value for value in graph.outputs}
    graph.outputs[:] = [outputs[spec.name] for spec in module.outputs]
    for node in ir.traversal.RecursiveGraphIterator(graph):
        node.doc_string = None
        for value in node.outputs:  # what the file says of sizes has names of its own; they are inferred afresh
            value.shape = value.type = None
    return ir.Function(DOMAIN, file, graph=graph, attributes=[])
