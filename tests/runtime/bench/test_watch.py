"""What CUDA's events and NVIDIA's profilers are told: GPU time of each graph, ranges, and nothing where nobody asks."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import standin_context
import standin_streams
from commands import done, mmgen
from play import Machine, each_flavour, same

from mmgen.runtime import Generator
from mmgen.runtime.bench.watch import watched_generator
from mmgen.runtime.storage.bundle import read_bundle

pytest_plugins = ["played"]

STEPS = 3
QUICK = (f"--steps={STEPS}", "--runs=4", "--warmup=1", "--starts=0", "--seconds=60")
SECONDS = {"condition": 0.5, "timestep": 0.25, "step": 2.0, "decode": 4.0}  # of the GPU's clock, by graph


@pytest.fixture
def gpu_clock(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in's clock moves while a graph runs, and at no other time."""
    clock = SimpleNamespace(now=0.0)
    plain = standin_context.Enqueued.run
    graphs = read_bundle(bundle_folder).graphs
    by_output = {spec.name: seconds for role, seconds in SECONDS.items() for spec in graphs[role].outputs}

    def run(work: standin_context.Enqueued) -> None:
        clock.now += by_output[work.outputs[0][0]]
        plain(work)

    monkeypatch.setattr(standin_streams, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(standin_context.Enqueued, "run", run)


@pytest.fixture
def profiler(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """NVIDIA's package, and the ranges that it was told of with their depths, as they began."""
    told: list[tuple[str, int]] = []
    depth = 0

    @contextmanager
    def annotate(message: str, *, domain: str) -> Iterator[None]:
        nonlocal depth
        assert domain == "mmgen"
        told.append((message, depth))
        depth += 1
        yield
        depth -= 1

    module: Any = ModuleType("nvtx")
    module.annotate = annotate
    monkeypatch.setitem(sys.modules, "nvtx", module)
    return told


# GPU time


@each_flavour
def test_each_graph_s_gpu_time_is_told_beside_the_host_s(
    machine: Machine, built: Callable[[str], Path], gpu_clock: None, tmp_path: Path
) -> None:
    files = (f"--output={tmp_path / 'all.json'}", f"--report={tmp_path}", f"--samples={tmp_path / 's.jsonl'}")
    said = done("bench", str(built(machine.release)), f"--backend={machine.flavour}", *QUICK, *files).stdout
    (series,) = json.loads((tmp_path / "all.json").read_text())["series"]
    assert {part: found["p50"] for part, found in series["gpu"].items()} == {
        "condition": 0.5, "timestep": 0.25, "evaluation": 2.0, "decode": 4.0,
    }  # fmt: skip
    assert series["gpu"]["evaluation"]["count"] == 4 * STEPS and series["gpu"]["decode"]["count"] == 4

    head, *rows = [line.split() for line in said.splitlines() if line.startswith(("part ", "condition ", "decode "))]
    assert head[-1] == "gpu"
    assert [row[-1] for row in rows[:2]] == ["500", "4000"], "milliseconds"
    assert "gpu: median between CUDA's events around a graph" in said
    assert "<th>gpu</th>" in (tmp_path / "index.html").read_text()

    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    timed = [sample for sample in samples if sample["gpu"]]
    assert {sample["phase"] for sample in timed} == {"by evaluation"}, "events are not in what is measured"
    assert timed[0]["gpu"]["evaluation"] == [2.0] * STEPS


def test_requests_that_are_watched_make_what_others_make(
    machine: Machine, built: Callable[[str], Path], wanted: Generator, profiler: list[tuple[str, int]]
) -> None:
    bundle = read_bundle(built(machine.release))
    with watched_generator(bundle, machine.flavour, None, nvtx=True) as (generator, watch):
        with watch.request(timed=True):
            ours = generator.generate(prompt="red", steps=STEPS)
        assert set(watch.taken()) == {"condition", "timestep", "loop", "decode"}, "the loop is recorded, and one call"
        assert watch.taken() == {}
        same(ours, wanted.generate(prompt="red", steps=STEPS))


def test_events_are_kept_for_the_next_request(machine: Machine, built: Callable[[str], Path]) -> None:
    bundle = read_bundle(built(machine.release))
    with watched_generator(bundle, machine.flavour, None, nvtx=False) as (generator, watch):
        counts = []
        for _ in range(3):
            with watch.request(timed=True):
                generator.generate(prompt="red", steps=STEPS)
            watch.taken()
            counts.append(machine.live()["Event"])
        assert counts[1] == counts[2]


def test_a_cpu_has_no_gpu_time(bundle_folder: Path) -> None:
    with watched_generator(read_bundle(bundle_folder), "ort-cpu", 1, nvtx=False) as (generator, watch):
        assert not watch.on_cuda
        with watch.request(timed=True):
            generator.generate(prompt="red", steps=1)
        assert watch.taken() == {}


# Ranges


def test_each_request_and_each_graph_in_it_has_a_range(bundle_folder: Path, profiler: list[tuple[str, int]]) -> None:
    done("bench", str(bundle_folder), "--backend=ort-cpu", "--threads=1", *QUICK, "--nvtx")
    request = [("request", 0), ("condition", 1), ("timestep", 1), *[("step", 1)] * STEPS, ("decode", 1)]
    assert profiler == request * 5


def test_a_recorded_loop_is_one_range(
    machine: Machine, built: Callable[[str], Path], profiler: list[tuple[str, int]]
) -> None:
    done("bench", str(built(machine.release)), f"--backend={machine.flavour}", *QUICK, "--nvtx")
    request = [("request", 0), ("condition", 1), ("timestep", 1), ("loop", 1), ("decode", 1)]
    by_evaluation = [("request", 0), ("condition", 1), ("timestep", 1), *[("step", 1)] * STEPS, ("decode", 1)]
    assert profiler == request * 5 + by_evaluation * 4


def test_without_being_asked_the_package_is_not_imported(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", None)  # importing it fails
    done("bench", str(bundle_folder), "--backend=ort-cpu", "--threads=1", *QUICK)
    result = mmgen("bench", str(bundle_folder), "--backend=ort-cpu", "--threads=1", *QUICK, "--nvtx")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: NVTX is not installed; pip install")
    assert "[profiling]" in result.stderr
