"""A graph's outputs from ONNX Runtime on the CPU, for comparisons."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.backends.ort.session import explained
from mmgen.runtime.storage.schema import Role

Arrays = dict[str, NDArray[Any]]
TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}  # where a feed may have another than the graph


def answers(role: Role, graph: Path, wanted: Sequence[str] = ()) -> Callable[[Mapping[str, NDArray[Any]]], Arrays]:
    """Return a function from inputs to outputs, both by name; it ignores inputs that the graph doesn't take.

    Args:
        role: what errors call the graph.
        graph: an ONNX file.
        wanted: any of its tensors in place of its outputs.

    Raises:
        MmgenError: ONNX Runtime can't load it; later, can't run it.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    source: Path | bytes = graph
    if wanted:
        model = ir.load(graph)
        tensors = {value.name: value for node in model.graph for value in node.outputs}
        model.graph.outputs.clear()
        model.graph.outputs.extend(tensors[name] for name in wanted)
        source = ir.to_proto(model).SerializeToString()
        key = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(key, str(graph.parent.absolute()))
    remedy = "change the model's forward, or update onnxruntime"
    with explained(f"graph {role} can't be loaded by ONNX Runtime", remedy):
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    inputs = {i.name: TYPES.get(i.type) for i in session.get_inputs()}

    def answer(given: Mapping[str, NDArray[Any]]) -> Arrays:
        taken = {name: given[name].astype(dtype or given[name].dtype, copy=False) for name, dtype in inputs.items()}
        with explained(f"graph {role} fails in ONNX Runtime", "its module may depend on the size of the batch"):
            return dict(zip(outputs, session.run(outputs, taken), strict=True))

    return answer
