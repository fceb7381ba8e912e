"""What is the same at every step is computed once, where that pays off, and nothing else changes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_graph import Graph, weight
from tolerances import LIMITS

from mmgen.export.base.lint import lint
from mmgen.export.hoisting.branch_axes import find_branch_axes
from mmgen.export.hoisting.cut import choose
from mmgen.export.hoisting.hoist import hoist
from mmgen.runtime.verify import relative_rms

Value = ir.Value

# What pays off


def hoisted(graph: Graph, usual: int = 2) -> set[str]:
    """Names of the tensors that are computed before the loop."""
    found = graph.model.graph
    names = [value.name or "" for value in found.inputs if value.name not in graph.others]
    nodes = choose(found, find_branch_axes(found, names), usual)
    return {value.name or "" for node in nodes for value in node.outputs}


def with_latents(graph: Graph, value: Value, width: int) -> None:
    """Let the latents (R, 4) meet what was made of the condition (R, ..., width)."""
    x = graph.op("MatMul", [graph.latents(4), weight(4, width)], width)
    if len(value.shape or ()) == 3:
        x = graph.op("Unsqueeze", [x, [1]], 1, width)
    graph.output(graph.op("Mul", [value, x], *(value.shape or ())[1:]))


def test_projections_of_a_context_are_hoisted() -> None:
    graph = Graph()
    context = graph.conditioning("context", 40, 64)
    keys = graph.op("MatMul", [context, weight(64, 64)], 40, 64)
    with_latents(graph, keys, 64)
    assert keys.name in hoisted(graph)


def test_a_broadcast_stays_where_it_is() -> None:
    graph = Graph()
    vector = graph.op("Gemm", [graph.conditioning("label", 64), weight(64, 64)], 64)
    row = graph.op("Unsqueeze", [vector, [1]], 1, 64)
    position = graph.op("Expand", [row, [1, 256, 64]], 256, 64)
    with_latents(graph, position, 64)
    assert vector.name in hoisted(graph) and position.name not in hoisted(graph)


def test_what_is_larger_than_what_it_saves_stays() -> None:
    graph = Graph()
    small = graph.conditioning("label", 1, 8)
    large = graph.op("MatMul", [graph.op("Transpose", [small], 8, 1, perm=[0, 2, 1]), weight(1, 4096)], 8, 4096)
    with_latents(graph, large, 4096)
    assert large.name not in hoisted(graph)


def test_rows_decide() -> None:
    """A table of 4096 numbers for every row saves 32 KiB of weights, once: for one row, but not for many."""
    graph = Graph()
    wide = graph.op("Gemm", [graph.conditioning("label", 8), weight(8, 2048)], 2048)
    with_latents(graph, wide, 2048)
    assert wide.name in hoisted(graph, usual=1) and wide.name not in hoisted(graph, usual=16)


def test_a_weight_that_the_step_needs_anyway_saves_nothing() -> None:
    def made(shared: bool) -> bool:
        graph = Graph()
        wide = graph.op("Gemm", [graph.conditioning("label", 4), weight(4, 2048)], 2048)
        matrix = (wide.producer() or ir.node("", [])).inputs[1] if shared else weight(4, 2048)
        x = graph.op("MatMul", [graph.latents(4), matrix], 2048)
        graph.output(graph.op("Mul", [wide, x], 2048))
        return wide.name in hoisted(graph, usual=1)

    assert made(shared=False) and not made(shared=True)


def test_nothing_is_hoisted_that_mixes_entries() -> None:
    graph = Graph()
    label = graph.op("Gemm", [graph.conditioning("label", 64), weight(64, 64)], 64)
    mean = graph.op("ReduceMean", [label, [0]], 64, first=1, keepdims=1)
    after = graph.op("Gemm", [mean, weight(64, 64)], 64, first=1)
    with_latents(graph, after, 64)
    assert label.name in hoisted(graph)
    assert not {mean.name, after.name} & hoisted(graph)


# The graphs


def parts(graph: Graph, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Open a step graph as it was, and all the graphs it became."""
    (folder / "traced").mkdir()
    graph.save(folder / "traced")
    whole = onnxruntime.InferenceSession(folder / "traced" / "step.onnx")
    assert hoist(folder / "traced", folder / "hoisted", 2) is not None
    files = {path.stem: path for path in (folder / "hoisted").glob("*.onnx")}
    for path in files.values():
        lint(path)
    return whole, {role: onnxruntime.InferenceSession(path) for role, path in files.items()}


def answer(session: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    taken = {i.name: feed[i.name] for i in session.get_inputs()}
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, taken), strict=True))


def play(sessions: Mapping[str, Any], feed: Mapping[str, np.ndarray], times: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Run the steps at some timesteps, as the runtime would."""
    guides, batch = len(feed["guidance"]), len(feed["noise"])
    rows = {name: a.reshape(-1, *a.shape[2:]) for name, a in feed.items() if a.shape[:2] == (guides, batch)}
    if "condition" in sessions:
        rows |= answer(sessions["condition"], rows)
    timed = answer(sessions["timestep"], rows | {"timestep": times}) if "timestep" in sessions else {}
    steps = []
    for i, time in enumerate(times):
        given = dict(feed) | {"timestep": time[None]} | {n: a[i] for n, a in timed.items()} | rows
        shapes = {v.name: v.shape for v in sessions["step"].get_inputs()}
        sizes = {"G": guides, "B": batch}
        known = [name for name in shapes if name in rows or name in timed]
        shaped = {name: given[name].reshape([sizes.get(n, n) for n in shapes[name]]) for name in known}
        steps.append(answer(sessions["step"], dict(feed) | {"timestep": time[None]} | shaped))
    return steps


@pytest.mark.parametrize(("guides", "batch"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_hoisted_graphs_give_the_same(guides: int, batch: int, tmp_path: Path) -> None:
    """Constants, learned rows, and what depends on timestep, condition and both; of every type and shape."""
    graph = Graph()
    time, label = graph.time(), graph.conditioning("label", dtype="INT64")
    context = graph.conditioning("context", 24, 128)
    waves = graph.op("Sin", [graph.op("Mul", [graph.op("Unsqueeze", [time, [1]], 1), weight(1, 64)], 64)], 64)
    timed = graph.op("Gemm", [waves, weight(64, 64)], 64)
    embedded = graph.op("Gather", [weight(10, 64), label], 64)
    learned = graph.op("Expand", [weight(1, 1, 64), graph.sizes(1, 64)], 1, 64)
    known = graph.op("Greater", [label, np.array(4)], dtype="BOOL")
    known = graph.op("Unsqueeze", [known, [1]], 1, dtype="BOOL")
    both = graph.op("Gemm", [graph.op("Tanh", [graph.op("Add", [timed, embedded], 64)], 64), weight(64, 4)], 4)
    tokens = graph.op("Concat", [graph.op("Unsqueeze", [embedded, [1]], 1, 64), learned], 2, 64, axis=1)
    summed = graph.op("ReduceSum", [graph.op("MatMul", [tokens, weight(64, 4)], 2, 4), [1]], 4, keepdims=0)
    large = graph.op("MatMul", [context, weight(128, 1024)], 24, 1024)  # an input of its own
    x = graph.op("Add", [graph.latents(4), both], 4)
    x = graph.op("Mul", [x, graph.op("Gemm", [timed, weight(64, 4)], 4)], 4)
    x = graph.op("Where", [known, x, graph.op("Neg", [x], 4)], 4)
    scores = graph.op("MatMul", [graph.op("Unsqueeze", [x, [1]], 1, 4), weight(4, 1024)], 1, 1024)
    back = graph.op("Transpose", [large], 1024, 24, perm=[0, 2, 1])
    scores = graph.op("ReduceMean", [graph.op("MatMul", [scores, back], 1, 24), [2]], 1, keepdims=0)
    joined = graph.op("Concat", [x, graph.op("Gemm", [timed, weight(64, 2)], 2)], 6, axis=1)  # doesn't broadcast
    x = graph.op("Gemm", [joined, weight(6, 4)], 4)
    graph.finish(graph.op("Add", [graph.op("Add", [x, summed], 4), scores], 4))
    whole, sessions = parts(graph, tmp_path)
    assert set(sessions) == {"condition", "timestep", "step"}

    rng = np.random.default_rng(0)
    feed = {
        "state": rng.standard_normal((4, batch, 4), np.float32),
        "guidance": np.ones(guides, np.float32),
        "noise": np.zeros((batch, 4), np.float32),
        "label": rng.integers(0, 10, (guides, batch)),
        "context": rng.standard_normal((guides, batch, 24, 128), np.float32),
    }
    times = np.array([3.0, 0.5, 1.25], np.float32)
    for time, got in zip(times, play(sessions, feed, times), strict=True):
        wanted = answer(whole, feed | {"timestep": time[None]})
        for name in wanted:
            assert relative_rms(got[name], wanted[name]) < LIMITS["hoisted graph"]


def test_what_has_no_use_any_more_is_gone(tmp_path: Path) -> None:
    graph = Graph()
    time = graph.op("Unsqueeze", [graph.time(), [1]], 1)
    keys = graph.op("Gemm", [graph.conditioning("context", 512), weight(512, 4)], 4)
    shift = graph.op("Gemm", [graph.op("Mul", [time, weight(1, 512)], 512), weight(512, 4)], 4)
    graph.finish(graph.op("Add", [graph.op("Add", [graph.latents(4), keys], 4), shift], 4))
    _, sessions = parts(graph, tmp_path)
    tensors = {role: [i.name for i in session.get_inputs()] for role, session in sessions.items()}
    assert tensors["step"] == ["state", "guidance", "noise", "condition_invariants", "timestep_invariants"]
    assert tensors["condition"] == ["context"] and tensors["timestep"] == ["timestep"]
    assert [o.shape for o in sessions["timestep"].get_outputs()] == [["N", 256]], "rows of whole alignments"


def test_a_name_that_is_taken_is_let_be(tmp_path: Path) -> None:
    graph = Graph()
    keys = graph.op("Gemm", [graph.conditioning("condition_invariants", 64), weight(64, 64)], 64)
    with_latents(graph, keys, 64)
    graph.save(tmp_path)
    hoisted = hoist(tmp_path, tmp_path / "out", 2)
    assert hoisted and [pack.name for pack in hoisted.packs] == ["condition_invariants_given"]


def test_where_there_is_nothing_to_gain_nothing_is_written(tmp_path: Path) -> None:
    graph = Graph()
    graph.finish(graph.op("Mul", [graph.latents(4), graph.conditioning("label", 4)], 4))
    graph.save(tmp_path)
    assert hoist(tmp_path, tmp_path / "out", 2) is None
    assert not (tmp_path / "out").exists()
