"""A module of torch as a graph in float32 and in half precision, and how far they are apart."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from torch import Tensor, nn

from mmgen.export.graphs.latent import Source
from mmgen.export.half.emulate import emulated
from mmgen.export.half.precision import Halved, to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.export.tracing.trace import trace
from mmgen.runtime.storage.schema import Role

Feeds = dict[str, np.ndarray]
FLOAT, HALF = "FLOAT", "FLOAT16"


def run(path: Path, feeds: Feeds) -> list[np.ndarray]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def run_half(path: Path, feeds: Feeds) -> list[np.ndarray]:
    assert run(path, feeds)  # it loads and runs as it is
    with emulated(path) as rounded:
        return run(rounded, feeds)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def write(
    folder: Path, module: nn.Module, role: Role = "condition", axes: Any = None, **inputs: Tensor
) -> tuple[Path, Feeds]:
    """Write a module as a float32 graph with one output; return it and the inputs it was traced with."""
    path = folder / f"{role}.onnx"
    leading = axes or dict.fromkeys(inputs, ("R",))
    trace(Source(role, module.eval(), inputs, leading, ("out",)), path)
    return path, {name: value.numpy() for name, value in inputs.items()}


def halve(path: Path, feeds: Feeds, role: Role = "condition", **options: Any) -> tuple[Path, Halved]:
    target = path.with_name(f"{path.stem}-half.onnx")
    return target, to_half(path, target, measure_ranges(path, [feeds]), role=role, **options)


def error_of_half(path: Path, feeds: Feeds, role: Role = "condition") -> tuple[float, Halved]:
    target, halved = halve(path, feeds, role)
    return relative(run_half(target, feeds)[0], run(path, feeds)[0]), halved


def reasons(halved: Halved) -> dict[str, str]:
    return {island.tensor: island.reason for island in halved.islands}
