"""What a bundle's counted work says of measured times, without torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from manifests import edit

from mmgen.runtime.bench.ceilings import Ceilings, host_ceilings
from mmgen.runtime.bench.roofline import count_operations, moved_bytes, roofline
from mmgen.runtime.bench.text import ceiling_text
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Graph, TensorSpec

AXES = {"B": 2, "G": 2, "R": 4, "N": 5}
GRAPH = Graph(
    "g.onnx", "0", (TensorSpec("x", "float16", ("R", 10)),), (TensorSpec("y", "float32", ("N", "R", 3)),),
    operations={"": 1, "R": 10, "N R": 100}, weight_bytes=1000,
)  # fmt: skip
MACHINE = Ceilings("host", operations=1e9, bytes=1e8, threads=1, busy=1.0)


def test_work_grows_with_the_axes_that_it_is_repeated_over() -> None:
    assert count_operations(GRAPH, AXES) == 1 + 10 * 4 + 100 * 5 * 4
    assert moved_bytes(GRAPH, AXES) == 1000 + 2 * 4 * 10 + 4 * 5 * 4 * 3


@pytest.mark.parametrize(
    ("operations", "bound", "share"),
    [(200, "bandwidth", 1000e-8 / 1e-4), (200_000, "arithmetic", 200_000e-9 / 1e-3)],
)
def test_a_graph_is_held_to_the_ceiling_that_it_meets_first(
    bundle_folder: Path, operations: int, bound: str, share: float
) -> None:
    bundle = read_bundle(bundle_folder)
    graph = replace(GRAPH, operations={"": operations}, inputs=(), outputs=())
    (point,) = roofline(replace(bundle, graphs={"step": graph}), AXES, {"step": 1e-4 if bound == "bandwidth" else 1e-3},
                        MACHINE)  # fmt: skip
    assert point.bound == bound
    assert point.share == pytest.approx(share)
    assert point.intensity == operations / 1000
    without = roofline(replace(bundle, graphs={"step": graph}), AXES, {"step": 1e-4}, replace(MACHINE, operations=None))
    assert without[0].bound == "bandwidth"


def test_a_bundle_that_was_not_counted_is_read_and_has_no_roofline(bundle_copy: Path) -> None:
    def uncounted(record: dict[str, Any]) -> None:
        for graph in record["graphs"].values():
            del graph["operations"], graph["weight_bytes"]

    edit(bundle_copy, uncounted)
    bundle = read_bundle(bundle_copy)
    assert roofline(bundle, AXES, dict.fromkeys(bundle.graphs, 1.0), MACHINE) == []


def test_graphs_that_took_no_time_are_left_out(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    graphs = replace(bundle, graphs={"step": GRAPH, "timestep": GRAPH, "encode": GRAPH})
    found = roofline(graphs, AXES, {"step": 1.0, "timestep": 0.0}, MACHINE)
    assert [point.graph for point in found] == ["step"]


def test_the_host_s_ceilings_are_measured_on_so_many_threads() -> None:
    found = host_ceilings(1)
    assert found.threads == 1
    assert found.busy is not None and 0 < found.busy < 1.1, "one thread can't keep two cores busy"
    assert found.operations is not None and found.operations > 1e8 and found.bytes > 1e8
    assert "1 threads that got" in ceiling_text(found)
