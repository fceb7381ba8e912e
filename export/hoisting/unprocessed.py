"""Which tensors of a graph still have the scale of what a request gives, since no layer came before them.

A robot's state may be 1000.3 where 1000.2 is another pose; half precision has no number between 1000.0 and 1000.5.
What a layer with weights, a norm or a bounded function makes has the network's own scale.
"""

from collections.abc import Container

import onnx_ir as ir

from mmgen.export.base.operators import BOUNDED, LOOKUPS, is_layer, values


def unprocessed(graph: ir.Graph, inputs: Container[str]) -> set[ir.Value]:
    """Find the tensors computed from some of a graph's inputs without a layer, and these inputs."""
    found = {value for value in graph.inputs if value.name in inputs}
    for node in graph:
        if not is_layer(node) and node.op_type not in BOUNDED and any(v in found for v in _numbers(node)):
            found.update(value for value in node.outputs if value.dtype != ir.DataType.BOOL)
    return found


def _numbers(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node whose values get into its outputs, and not just their positions or sizes."""
    if node.op_type in ("Shape", "Size"):
        return []
    if node.op_type in LOOKUPS:
        return [value for value in node.inputs[:1] if value is not None]
    return values(node)
