"""Every kind of request on the stand-in: evaluations of one branch and of several, starts from media, deadlines."""

import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import api
from play import Machine, copied

from mmgen.runtime import Cancelled, Generator, MmgenError, load

ASKED: dict[str, Any] = {"prompt": ["red apple", "blue cat"], "seed": 3, "steps": 4, "guidance": 3.0}
OLDEST = "10.3.0"
MIXED = {**ASKED, "guidance_interval": (0.2, 5.0)}
ALL_KINDS = {
    "interval": MIXED,
    "interval, stochastic": {**MIXED, "solver": "ddpm"},
    "negative": {**ASKED, "negative": {"prompt": "green rocket"}},
    "three branches": {**MIXED, "also": [({"label": 3}, 0.5)]},
    "rescaled": {**MIXED, "guidance_rescale": 0.7},
}
LATENTS = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)
PICTURES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module", params=[OLDEST, api.RTX])
def built(request: pytest.FixtureRequest, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A release, and a bundle with its engines."""
    folder = copied(bundle_folder, tmp_path_factory.mktemp("built") / "test.mmgen")
    with pytest.MonkeyPatch.context() as patch:
        Machine(request.param, patch).build(folder)
    return request.param, folder


@pytest.fixture
def machine(built: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine on which nothing was used wrongly and nothing is left when the test ends."""
    made = Machine(built[0], monkeypatch)
    yield made
    gc.collect()
    assert made.cuda.memory.misuses == []
    assert made.live() == {}


@pytest.fixture
def generator(machine: Machine, built: Any) -> Iterator[Generator]:
    with load(built[1], machine.flavour) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(bundle_folder: Path) -> Iterator[Generator]:
    """ONNX Runtime on the CPU."""
    with load(bundle_folder, "ort-cpu") as opened:
        yield opened


def same(ours: Any, theirs: Any) -> None:
    """Two results, to the bit."""
    np.testing.assert_array_equal(ours.latents, theirs.latents)
    np.testing.assert_array_equal(ours.media, theirs.media)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_the_loop_is_one_graph_whatever_guidance_does(
    machine: Machine, generator: Generator, wanted: Generator, kind: str
) -> None:
    """Also the first time, when an evaluation of each shape has run before the loop is recorded."""
    asked = ALL_KINDS[kind]
    for seed in (3, 4):
        same(generator.generate(**asked | {"seed": seed}), wanted.generate(**asked | {"seed": seed}))
    assert machine.cuda.calls.count("cudaGraphLaunch") == 2
    assert machine.cuda.calls.count("cudaGraphInstantiate") == 1
    *_, last = generator.stream(**asked)
    same(last.result(), wanted.generate(**asked))


def test_another_interval_is_another_plan(machine: Machine, generator: Generator, wanted: Generator) -> None:
    for interval in [(0.2, 5.0), (0.0, 2.0), None, (0.2, 5.0)]:
        asked = {**ASKED, "guidance_interval": interval}
        same(generator.generate(**asked), wanted.generate(**asked))


def test_more_branches_than_the_engines_hold_name_what_to_build(generator: Generator, wanted: Generator) -> None:
    also = [({"label": i}, 0.5) for i in range(4)]
    with pytest.raises(MmgenError, match=r"axis G, got 6, wanted 1 to 4; ask for fewer prompts .*--axis G=1:2:6"):
        generator.generate(**ASKED, also=also)
    wanted.generate(**ASKED, also=also)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "euler-ancestral"])
def test_a_start_from_latents_or_media(
    machine: Machine, generator: Generator, wanted: Generator, solver: str
) -> None:
    for start in ({"latents": LATENTS}, {"image": PICTURES}, {"image": PICTURES[0]}):
        asked = {**ASKED, **start, "strength": 0.5, "solver": solver}
        same(generator.generate(**asked), wanted.generate(**asked))
    assert machine.cuda.calls.count("cudaGraphInstantiate") == 1


def test_a_deadline_runs_row_by_row(machine: Machine, generator: Generator, wanted: Generator) -> None:
    result = generator.generate(**ASKED, deadline=1000)
    assert result.complete and len(result.timings.steps) == ASKED["steps"]
    assert "cudaGraphLaunch" not in machine.cuda.calls
    same(result, wanted.generate(**ASKED))
    late = generator.generate(**ASKED, deadline=1e-6)
    assert (late.steps_asked, late.steps, late.evaluations_run, late.complete) == (4, 1, 1, False)


def test_what_can_be_cancelled_runs_row_by_row(machine: Machine, generator: Generator, wanted: Generator) -> None:
    event = threading.Event()
    same(generator.generate(**ASKED, cancel=event), wanted.generate(**ASKED))
    assert "cudaGraphLaunch" not in machine.cuda.calls
    event.set()
    with pytest.raises(Cancelled):
        generator.generate(**ASKED, cancel=event)


def test_streams_and_recorded_loops_of_one_size_run_in_turns(
    machine: Machine, generator: Generator, wanted: Generator
) -> None:
    """Each has a plan: its own memory, execution contexts and recording.  Rows are taken by any thread."""
    asked = [ASKED | {"seed": seed} for seed in range(3)]
    recorded = wanted.generate(**ASKED)
    generator.generate(**ASKED)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        ours, theirs = ([each.stream(**request) for request in asked] for each in (generator, wanted))
        for row in range(ASKED["steps"]):
            for mine, expected in zip(ours, theirs, strict=True):
                progress, wants = (one if row % 2 else other).submit(next, mine).result(), next(expected)
                same(one.submit(generator.generate, **ASKED).result(), recorded)
                generator.generate(**ASKED | {"steps": 2 + row})
                np.testing.assert_array_equal(other.submit(progress.latents).result(), wants.latents())
                np.testing.assert_array_equal(one.submit(progress.preview).result(), wants.preview())
                if progress.last:
                    same(progress.result(), wants.result())
    assert [next(stream, None) for stream in ours] == [None] * 3
