"""Half precision as a GPU computes it, on a CPU: float arithmetic inside an operator, its result rounded to half.

ONNX Runtime has few half kernels for CPUs.  It runs the others in float32 and removes the casts between them, so a
half graph there neither rounds nor overflows, and would validate nothing.  Casts in a float32 graph are kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper

from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.ort.widen import SUFFIX, widen
from mmgen.runtime.files.unfinished import unfinished
from mmgen.runtime.storage.schema import Bundle, Role

MOVES = {
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
}  # fmt: skip  # pass values on unchanged, so there is nothing to round


def emulate_half(source: Path, target: Path) -> None:
    """Write a float32 graph that rounds every value which is half in ``source``; inputs and outputs keep their types.

    ``target`` is new, and in the folder of ``source``: both use the same external weights.
    """
    model = onnx.shape_inference.infer_shapes(onnx.load(source, load_external_data=False))
    graph = model.graph
    outputs = {value.name for value in graph.output}
    values = (*graph.value_info, *graph.output)
    half = {v.name for v in values if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    widen(graph)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name.removesuffix(SUFFIX) in half and name not in outputs and node.op_type not in MOVES:
                node.output[i] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [node.output[i]], [f"{name}.half"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    with target.open("xb") as file:
        onnx.save(model, file)


@contextmanager
def emulated(graph: Path) -> Iterator[Path]:
    """Yield a file with the graph whose half values are rounded, for as long as the block lasts."""
    with unfinished(graph) as rounded:
        try:
            emulate_half(graph, rounded)
            yield rounded
        finally:
            rounded.unlink(missing_ok=True)


class EmulatedHalf(OrtCpu):
    """ONNX Runtime on the CPU, every half value rounded."""

    name = "ort-cpu, half emulated"

    def load(self, bundle: Bundle, role: Role, options: Any) -> Any:
        with emulated(bundle.path(bundle.graphs[role].file)) as rounded:
            return self.session(rounded, options)
