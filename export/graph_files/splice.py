"""The graphs of ONNX files in place of the calls that torch traced.

A call becomes a node of a function; the function is the file's graph, whose float32 weights are the last inputs.  What
inlines functions, makes names unique and merges metadata is onnx_ir.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx.defs import OpSchema
from onnxscript import values

from mmgen.export.graph_files.module import OnnxModule, opened
from mmgen.export.graph_files.reading import with_shapes

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
    calls: dict[ir.OperatorIdentifier, list[ir.Node]] = {}
    for node in model.graph:
        if node.domain == DOMAIN:
            calls.setdefault(node.op_identifier(), []).append(node)
    for identifier, nodes in calls.items():
        model.functions[identifier] = _function(opened(nodes[0].op_type), nodes)


def _function(module: OnnxModule, calls: Sequence[ir.Node]) -> ir.Function:
    """Return a file's graph as a function of its inputs and then its float32 weights."""
    graph = with_shapes(module.file.model).graph
    _rename_sizes(graph, _sizes(module, calls))
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
    return ir.Function(DOMAIN, module.key, graph=graph, attributes=[])


def _sizes(module: OnnxModule, calls: Sequence[ir.Node]) -> Mapping[str, int | ir.SymbolicDim]:
    """Return what the file's names of sizes are in the traced graph, as far as all calls agree."""
    found: dict[str, set[int | ir.SymbolicDim]] = {}
    for node in calls:
        for value, spec in zip(node.inputs, module.inputs, strict=False):  # the weights come after them
            for name, size in zip(spec.shape, value.shape if value is not None and value.shape else (), strict=False):
                if isinstance(name, str):
                    found.setdefault(name, set()).add(size)
    return {name: sizes.pop() for name, sizes in found.items() if len(sizes) == 1}


def _rename_sizes(graph: ir.Graph, sizes: Mapping[str, int | ir.SymbolicDim]) -> None:
    """Give all tensors the traced graph's sizes; what isn't known of them is inferred when it is simplified."""
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else sizes.get(str(d.value)) for d in value.shape])
