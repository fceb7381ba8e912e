"""The largest magnitudes of a graph's tensors, measured by running it."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mmgen.export.base.dtypes import is_single, load
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.base.errors import MmgenError

SUFFIXES = ("@max", "@sum")  # of the names of the added outputs


def measure_ranges(path: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Measure the largest magnitude of every float32 tensor of a graph, weights excepted.

    The graph runs in ONNX Runtime with a maximum and a sum added behind each tensor, and with no optimisation, so
    that every tensor exists.  Its weights are read in place.

    Args:
        path: an ONNX file.
        feeds: inputs by name, one mapping for each run; typical of use.  Names that aren't inputs are ignored.

    Returns:
        max |value| over all runs, by tensor name; infinity for a tensor that was not finite.

    Raises:
        MmgenError: an output of the graph is NaN, or infinite though no input and no constant is; it names the first
            such tensor in the graph's order.
    """
    ort = import_onnxruntime()
    model = load(path)
    values = _instrument(model)
    if not values:  # a graph of whole numbers
        return {}
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # otherwise all that measures runs last
    options.add_session_config_entry("session.disable_prepacking", "1")  # it would copy the weights
    options.log_severity_level = 3  # it warns of outputs that don't depend on the inputs
    key = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(key, str(path.parent.absolute()))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}
    names = [f"{value.name}{suffix}" for value in values for suffix in SUFFIXES]

    ranges = {value.name or "": 0.0 for value in values}
    for feed in feeds:
        run = session.run(names, {name: x for name, x in feed.items() if name in taken})
        measured = np.array(run, np.float64).reshape(-1, len(SUFFIXES))
        maxima = np.where(np.isnan(measured[:, 1]), np.nan, measured[:, 0])  # ReduceMax skips NaN, ReduceL1 doesn't
        largest = dict(zip(ranges, maxima.tolist(), strict=True))
        _check_finite(path, model, largest)
        for name, value in largest.items():
            ranges[name] = max(ranges[name], math.inf if math.isnan(value) else value)
    return ranges


def _instrument(model: ir.Model) -> list[ir.Value]:
    """Add two scalars behind every float32 tensor as outputs of the graph; return the tensors, in order."""
    graph = model.graph
    inputs = [value for value in graph.inputs if is_single(value)]
    values = inputs + [value for node in graph for value in node.outputs if value.name and is_single(value)]
    for value in values:
        magnitude = ir.node("Abs", [value])
        maximum = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        total = ir.node("ReduceL1", [value], {"keepdims": 0})
        producer = value.producer()  # measured where it is made, so that it need not live to the end
        place = graph[0] if producer is None else producer
        (graph.insert_before if producer is None else graph.insert_after)(place, [magnitude, maximum, total])
        for node, suffix in zip((maximum, total), SUFFIXES, strict=True):
            output = node.outputs[0]
            output.name, output.dtype, output.shape = f"{value.name}{suffix}", ir.DataType.FLOAT, ir.Shape([])
            graph.outputs.append(output)
    return values


def _check_finite(path: Path, model: ir.Model, largest: Mapping[str, float]) -> None:
    """Check that outputs are finite; inside, masks may be infinite, and an input limit may be infinity."""
    outputs = [largest[name] for v in model.graph.outputs if (name := v.name or "") in largest]
    nan = any(map(math.isnan, outputs))
    if not nan and all(map(math.isfinite, outputs)):
        return
    weights = (v.const_value for v in model.graph.initializers.values() if is_single(v) and v.const_value is not None)
    fed = any(math.isinf(largest[v.name or ""]) for v in model.graph.inputs if is_single(v))
    if not nan and (fed or any(np.isinf(tensor.numpy()).any() for tensor in weights)):
        return
    name = next(name for name, value in largest.items() if (math.isnan if nan else math.isinf)(value))
    producer = next((node for node in model.graph for v in node.outputs if v.name == name), None)
    raise MmgenError(
        f"graph {path.stem}: {f'tensor {name} ({producer.op_type})' if producer else f'input {name}'} in float32",
        got="NaN" if nan else "infinity",
        wanted="finite numbers",
        remedy="check the weights of the model and what it is fed; it breaks down here first",
    )
