"""How large the tensors of a graph get, measured by running it."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mmgen.export.dtypes import is_single, load
from mmgen.runtime.errors import MmgenError

SUFFIXES = ("@max", "@sum")  # of the names of the added outputs


def measure_ranges(path: Path, feeds: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Largest magnitude of every float32 tensor of a graph, weights excepted.

    The graph runs in ONNX Runtime with a maximum and a sum added behind each tensor, and with no optimisation, so
    that every tensor exists.  Its weights are read where they are.

    Args:
        path: an ONNX file.
        feeds: inputs by name, one mapping for each run; typical of use, since nothing else is seen.

    Returns:
        max |value| over all runs, by tensor name; infinity for a tensor that was not finite.

    Raises:
        MmgenError: an output of the graph is not finite; it names the first tensor, in the graph's order, that is not
            finite while what it is computed from is.  Infinite inputs and constants may give infinite outputs.
    """
    import onnxruntime as ort

    model = load(path)
    values = _instrument(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # it warns of outputs that don't depend on the inputs
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent.resolve()))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [f"{value.name}{suffix}" for value in values for suffix in SUFFIXES]

    ranges = {value.name or "": 0.0 for value in values}
    for feed in feeds:
        measured = np.array(session.run(names, dict(feed)), np.float64).reshape(-1, len(SUFFIXES))
        maxima = np.where(np.isnan(measured[:, 1]), np.nan, measured[:, 0])  # ReduceMax skips NaN, ReduceL1 doesn't
        largest = dict(zip(ranges, maxima.tolist(), strict=True))
        _check_finite(path, model, largest)
        for name, value in largest.items():
            ranges[name] = max(ranges[name], math.inf if math.isnan(value) else value)
    return ranges


def _instrument(model: ir.Model) -> list[ir.Value]:
    """Add two scalars behind every float32 tensor as outputs of the graph; returns the tensors, in order."""
    graph = model.graph
    inputs = [value for value in graph.inputs if is_single(value)]
    values = inputs + [value for node in graph for value in node.outputs if value.name and is_single(value)]
    for value in values:
        magnitude = ir.node("Abs", [value])
        maximum = ir.node("ReduceMax", magnitude.outputs, {"keepdims": 0})
        total = ir.node("ReduceL1", [value], {"keepdims": 0})
        graph.extend([magnitude, maximum, total])
        for node, suffix in zip((maximum, total), SUFFIXES, strict=True):
            output = node.outputs[0]
            output.name, output.dtype, output.shape = f"{value.name}{suffix}", ir.DataType.FLOAT, ir.Shape([])
            graph.outputs.append(output)
    return values


def _check_finite(path: Path, model: ir.Model, largest: Mapping[str, float]) -> None:
    """Infinities inside a graph are fine (masks are made of them); outputs must be numbers, unless inputs aren't."""

    def broken(value: ir.Value | None) -> bool:
        if value is None:
            return False
        if value.const_value is not None and is_single(value):
            return not np.isfinite(value.const_value.numpy()).all()
        return not math.isfinite(largest.get(value.name or "", 0.0))

    if not any(broken(output) for output in model.graph.outputs):
        return
    for value in model.graph.inputs:
        if math.isnan(largest.get(value.name or "", 0.0)):
            raise MmgenError(f"graph {path.stem}: input {value.name} holds NaN", remedy="feed numbers")
    for node in model.graph:
        for value in node.outputs:
            if broken(value) and not any(broken(v) for v in node.inputs):
                raise MmgenError(
                    f"graph {path.stem}: tensor {value.name} ({node.op_type}) in float32",
                    got="NaN" if math.isnan(largest[value.name or ""]) else "infinity",
                    wanted="finite numbers",
                    remedy="the model itself breaks down here; check its weights and its inputs",
                )
