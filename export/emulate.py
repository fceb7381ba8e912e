"""Half precision as a GPU computes it, on a CPU: float arithmetic inside an operator, its result rounded to half.

ONNX Runtime has few half kernels for CPUs.  It runs the others in float32 and removes the casts between them, so a
half graph there neither rounds nor overflows, and would prove nothing.  Casts that stand in a float32 graph it keeps.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mmgen.runtime.ort import OrtCpu

MOVES = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip  # give values that they were given, so there is nothing to round


def emulate_half(source: Path, target: Path) -> None:
    """Write a float32 graph that rounds every value which is half in ``source``; inputs and outputs keep their types.

    ``target`` must be in the folder of ``source``: both use the same external weights.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
    graph = model.graph
    half = {v.name for v in graph.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes: list[NodeProto] = []
    outside = {v.name for v in (*graph.input, *graph.output) if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    for value in graph.input:
        if value.name in outside:
            nodes.append(helper.make_node("Cast", [value.name], [f"{value.name}.float"], to=TensorProto.FLOAT))
    for weight in graph.initializer:
        if weight.data_type == TensorProto.FLOAT16:
            name, weight.name = weight.name, f"{weight.name}.half"
            nodes.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            _widen(attribute)
        for i, name in enumerate(node.input):
            if name in outside:
                node.input[i] = f"{name}.float"
        for i, name in enumerate(node.output):
            if name in outside:
                node.output[i] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [node.output[i]], [name], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [name], [f"{name}.float"], to=TensorProto.FLOAT))
            if name in half and node.op_type not in MOVES:
                node.output[i] = f"{name}.float"
                nodes.append(helper.make_node("Cast", [node.output[i]], [f"{name}.half"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.save(model, target)


def _widen(attribute: onnx.AttributeProto) -> None:
    """``Cast(to=half)`` to float: the rounding follows it; constants of half to float."""
    if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
        attribute.i = TensorProto.FLOAT
    elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
        attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))


@contextmanager
def emulated(graph: Path) -> Iterator[Path]:
    """The graph with its halves rounded, as a file for as long as the block lasts."""
    rounded = graph.with_name(f".{graph.name}.emulated")
    try:
        emulate_half(graph, rounded)
        yield rounded
    finally:
        rounded.unlink(missing_ok=True)


class EmulatedHalf(OrtCpu):
    """ONNX Runtime on the CPU, every half value rounded."""

    name = "ort-cpu, half emulated"

    def load(self, graph: Path, options: Any) -> Any:
        with emulated(graph) as rounded:
            return self.session(rounded, options)
