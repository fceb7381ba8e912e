"""How near each graph of a bundle comes to what the machine can do (Williams, Waterman and Patterson 2009).

Operations and weights of a graph were counted when it was exported.  The bytes are the fewest that a run can move:
every weight, input and output once.  What a run moves beside these, such as what lies between two layers, isn't known
here; and what stays in a cache from one run to the next isn't moved at all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mmgen.runtime.bench.ceilings import Ceilings
from mmgen.runtime.storage.schema import Bundle, Graph, TensorSpec, shape_of

Bound = Literal["arithmetic", "bandwidth"]


@dataclass(frozen=True)
class Point:
    """One graph on the roofline."""

    graph: str
    operations: int  # of a run
    bytes: int  # of a run, the fewest
    seconds: float  # that a run took
    bound: Bound  # the ceiling that it would meet first
    share: float  # of that ceiling that it reached; above 1 if weights stayed in a cache

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.bytes

    @property
    def operations_rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def bytes_rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds


def roofline(bundle: Bundle, axes: Mapping[str, int], seconds: Mapping[str, float], ceilings: Ceilings) -> list[Point]:
    """Return a point for each graph that was timed and whose work was counted.

    Args:
        bundle: whose graphs.
        axes: sizes of B, G, R and N.
        seconds: of a run, by role.
        ceilings: of the machine.
    """
    points = []
    for role, graph in bundle.graphs.items():
        if graph.operations is None or graph.weight_bytes is None or not seconds.get(role):
            continue
        operations, moved = count_operations(graph, axes), moved_bytes(graph, axes)
        by_bytes = moved / ceilings.bytes
        by_operations = operations / ceilings.operations if ceilings.operations else 0.0
        bound: Bound = "arithmetic" if by_operations > by_bytes else "bandwidth"
        share = max(by_operations, by_bytes) / seconds[role]
        points.append(Point(role, operations, moved, seconds[role], bound, share))
    return points


def count_operations(graph: Graph, axes: Mapping[str, int]) -> int:
    """Floating-point operations of products and convolutions in a run with axes of these sizes."""
    return sum(n * math.prod(axes[axis] for axis in over.split()) for over, n in (graph.operations or {}).items())


def moved_bytes(graph: Graph, axes: Mapping[str, int]) -> int:
    """Count the fewest bytes that a run moves: weights, inputs and outputs, each once."""
    return (graph.weight_bytes or 0) + sum(_bytes(spec, axes) for spec in (*graph.inputs, *graph.outputs))


def _bytes(spec: TensorSpec, axes: Mapping[str, int]) -> int:
    return math.prod(shape_of(spec, dict(axes))) * np.dtype(spec.dtype).itemsize
