"""Products with large matrices in eight bits, for processors that multiply these faster than float32.

Each column of a matrix has a scale of its own, found when the graph is loaded: W ~ s_n Q, |Q| <= 127.  The other factor
gets one scale and zero point for all of it in each call (ONNX, DynamicQuantizeLinear): x ~ s (u - z), 0 <= u <= 255.
So x W ~ s s_n (u - z) Q, summed in int32, and ONNX Runtime fuses this to one operator.
"""

import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.ort.onnx_file import FLOAT, FLOAT16, INT8, add_node
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.builds.optimised import processor

NARROW = 128  # matrices with fewer rows or columns stay: they take little time, and include a network's first and last
TYPES = {FLOAT: np.float32, FLOAT16: np.float16}


def quantise(graph: Any, weights_file: Path | None, largest: int) -> bool:
    """Replace a graph's products with constant matrices of at least 128 x 128 by products in eight bits.

    Args:
        graph: a ``GraphProto`` that computes in float32, changed in place.
        weights_file: that holds its external weights, whatever the graph says.
        largest: absolute value of a quantised weight, from ``largest_weight``.

    Returns:
        Whether there was any such product.

    Raises:
        MmgenError: a weight isn't where the graph says.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    sources = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Cast" and n.input[0] in weights}
    nodes = list(graph.node)
    del graph.node[:]
    matrices: set[str] = set()
    inputs: set[str] = set()
    for node in nodes:
        weight = weights.get(sources.get(node.input[1], node.input[1])) if node.op_type == "MatMul" else None
        if weight is None or not _is_large(weight):
            graph.node.append(node)
            continue
        (x, name), (out,) = node.input, node.output
        if x not in inputs:
            add_node(graph, "DynamicQuantizeLinear", [x], [f"{x}.uint8", f"{x}.scale", f"{x}.zero"])
            inputs.add(x)
        if name not in matrices:
            _add_matrix(graph, name, _read(weight, weights_file), largest)
            matrices.add(name)
        add_node(graph, "MatMulInteger", [f"{x}.uint8", f"{name}.int8", f"{x}.zero"], [f"{out}.int32"])
        add_node(graph, "Cast", [f"{out}.int32"], [f"{out}.unscaled"], to=FLOAT)
        add_node(graph, "Mul", [f"{x}.scale", f"{name}.scale"], [f"{out}.factor"])
        add_node(graph, "Mul", [f"{out}.unscaled", f"{out}.factor"], [out])
    _drop_unread(graph, matrices)
    return bool(matrices)


def largest_weight() -> int:
    """Return 127, or 63 on x86 without VNNI, where ONNX Runtime's sum of two products in 16 bits would overflow."""
    return 63 if platform.machine() in ("x86_64", "AMD64") and "vnni" not in processor() else 127


def _is_large(weight: Any) -> bool:
    """Check whether a weight is a large matrix, of a type and in a location that it can be read from."""
    stored = weight.external_data or weight.raw_data
    return len(weight.dims) == 2 and min(weight.dims) >= NARROW and weight.data_type in TYPES and bool(stored)


def _add_matrix(graph: Any, name: str, matrix: NDArray[Any], largest: int) -> None:
    """Add W (K, N) as Q int8 (K, N) and s float32 (N,)."""
    scale = np.abs(matrix).max(0) / np.float32(largest)
    scale[scale == 0] = 1
    quantised = np.rint(matrix / scale).astype(np.int8)
    for suffix, kind, array in (("int8", INT8, quantised), ("scale", FLOAT, scale)):
        graph.initializer.add(name=f"{name}.{suffix}", data_type=kind, dims=array.shape, raw_data=array.tobytes())


def _read(weight: Any, file: Path | None) -> NDArray[np.float32]:
    """Read a weight's numbers, from the graph or from the file next to it."""
    kind, shape = TYPES[weight.data_type], tuple(weight.dims)
    location = {entry.key: entry.value for entry in weight.external_data}
    try:
        if not location or file is None:
            return np.frombuffer(weight.raw_data, kind).reshape(shape).astype(np.float32)
        mapped = np.memmap(file, kind, "r", int(location.get("offset", 0)), shape)
        return mapped.astype(np.float32)
    except (OSError, ValueError, OverflowError) as error:
        what = f"weight {shown(weight.name)} can't be read as {np.dtype(kind)} {shape} ({error})"
        raise MmgenError(what, remedy="export or copy the bundle again") from error


def _drop_unread(graph: Any, matrices: set[str]) -> None:
    """Remove the matrices that no product uses any more, with their casts."""
    read = {name for node in graph.node for name in node.input}
    nodes = [node for node in graph.node if node.output[0] in read or node.output[0] not in matrices]
    read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    weights = [weight for weight in graph.initializer if weight.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
