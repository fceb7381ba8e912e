"""ONNX files: the graph, and its weights in a second file."""

from collections.abc import Callable, Iterable
from pathlib import Path

import onnx_ir as ir
from onnx_ir import external_data

EXTERNAL_BYTES = 1024  # smaller weights stay in the graph
SHAPE_BYTES = 1 << 16  # and smaller whole numbers: what shapes depend on has to be there when they are inferred

Written = Callable[[ir.TensorProtocol, external_data.CallbackInfo], None]


def save(model: ir.Model, path: Path, written: Written | None = None) -> None:
    """Write a graph to ``path`` and its weights to ``path`` + ".data".

    Sizes, axes and indices stay in the graph: ONNX's checker and shape inference, and TensorRT's parser, don't look
    for them in the other file.

    Args:
        model: left unchanged.
        written: called for each weight that goes to the other file.
    """
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    before = {value: value.const_value for value in values if value.const_value is not None}
    leaving = {value: tensor for value, tensor in before.items() if leaves(tensor)}
    coming = {v: t for v, t in before.items() if v not in leaving and isinstance(t, ir.ExternalTensor)}
    try:
        _replace(coming, external_data.convert_tensors_from_external(list(coming.values())))
        if leaving:
            tensors, data = list(leaving.values()), f"{path.name}.data"
            _replace(leaving, external_data.convert_tensors_to_external(tensors, path.parent, data, callback=written))
        ir.save(model, path)
    finally:
        _replace(before, before.values())


def leaves(tensor: ir.TensorProtocol) -> bool:
    """Return whether a weight is for the second file."""
    return tensor.nbytes > (EXTERNAL_BYTES if tensor.dtype.is_floating_point() else SHAPE_BYTES)


def _replace(values: Iterable[ir.Value], tensors: Iterable[ir.TensorProtocol | None]) -> None:
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor
