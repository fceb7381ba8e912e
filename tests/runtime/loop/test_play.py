"""Engines played on the stand-in: what the backends do with every release of TensorRT, compared with ONNX Runtime.

The stand-in computes with ONNX Runtime, so results are equal to the bit wherever the right tensors were bound in the
right order.  What it can't show, numbers and time on a device, is in test_gpu and test_gpu_costs.
"""

import gc
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import api
from play import ASKED, Machine, each_flavour, rtx, same
from standin_context import IExecutionContext
from standin_device import Status

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.backends.memory import Layout
from mmgen.runtime.backends.registry import open_backend
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Axis

pytest_plugins = ["played"]

NOISY = {**ASKED, "solver": "ddpm"}
ROLES = ("condition", "decode", "step", "timestep")
every_release = pytest.mark.parametrize("release", api.VERSIONS)


@every_release
@pytest.mark.parametrize("asked", [ASKED, NOISY], ids=["deterministic", "stochastic"])
def test_results_are_those_of_onnx_runtime(
    machine: Machine, bundle: Path, wanted: Generator, asked: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with load(bundle, machine.flavour) as generator:
        for _ in range(2):  # the second request finds the memory and the graph of the first
            same(generator.generate(**asked), wanted.generate(**asked))
        assert machine.cuda.calls.count("cudaGraphLaunch") == 2, "a request is one graph"
        assert machine.cuda.calls.count("cudaGraphInstantiate") == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING], caplog.text


@each_flavour
def test_after_warming_up_the_first_request_only_writes_and_launches(machine: Machine, bundle: Path) -> None:
    with load(bundle, machine.flavour) as generator:
        generator.warm_up(batch=2, steps=3)
        assert machine.cuda.calls.count("cudaGraphInstantiate") == 1
        del machine.cuda.calls[:]
        generator.generate(**ASKED)
        assert machine.cuda.calls.count("cudaGraphLaunch") == 1
        for slow in ("cudaMalloc", "cudaMallocHost", "cudaEventCreateWithFlags", "cudaGraphInstantiate"):
            assert slow not in machine.cuda.calls, "it was done before"


@every_release
def test_a_stream_is_the_same_row_by_row(machine: Machine, bundle: Path, wanted: Generator) -> None:
    with load(bundle, machine.flavour) as generator:
        for ours, theirs in zip(generator.stream(**ASKED), wanted.stream(**ASKED), strict=True):
            np.testing.assert_array_equal(ours.latents(), theirs.latents())
            np.testing.assert_array_equal(ours.preview(), theirs.preview())
        assert "cudaGraphLaunch" not in machine.cuda.calls
        same(generator.generate(**ASKED), wanted.generate(**ASKED))


@each_flavour
def test_requests_of_other_sizes_alternate(machine: Machine, bundle: Path, wanted: Generator) -> None:
    sizes = [{"count": 1}, {"count": 3}, {"guidance": 1.0}, {"count": 1}, {"steps": 5}, {"steps": 2}, {"count": 3}]
    with load(bundle, machine.flavour) as generator:
        for size in sizes:
            same(generator.generate(**ASKED | size), wanted.generate(**ASKED | size))


@each_flavour
def test_latents_are_decoded(machine: Machine, bundle: Path, wanted: Generator) -> None:
    latents = wanted.generate(**ASKED).latents
    with load(bundle, machine.flavour) as generator:
        before = machine.live()
        for ours, theirs in zip(generator.decode(latents), wanted.decode(latents), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        generator.decode(latents)
        assert machine.live().get("device memory", 0) <= before.get("device memory", 0) + 1, "scratch memory stays"


@each_flavour
def test_a_stream_left_half_way_leaves_nothing(machine: Machine, bundle: Path, wanted: Generator) -> None:
    with load(bundle, machine.flavour) as generator:
        for progress in generator.stream(**ASKED):
            if progress.evaluation == 1:
                break
        del progress
        same(generator.generate(**ASKED), wanted.generate(**ASKED))
        generator.close()
        generator.close()


@each_flavour
def test_threads_queue(machine: Machine, bundle: Path, wanted: Generator) -> None:
    """Each thread has to make the device its own; CUDA keeps one for each."""
    results: dict[int, Any] = {}
    with load(bundle, machine.flavour) as generator:

        def work(seed: int) -> None:
            results[seed] = generator.generate(**ASKED | {"seed": seed})

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seed in range(4):
        same(results[seed], wanted.generate(**ASKED | {"seed": seed}))


@each_flavour
def test_auto_takes_engines_that_fit(machine: Machine, bundle: Path, bundle_folder: Path) -> None:
    with load(bundle) as generator:
        assert generator.backend == machine.flavour
    with load(bundle_folder) as generator:
        assert generator.backend in ("openvino", "ort-cpu")


def test_generators_run_side_by_side(machine: Machine, bundle: Path, wanted: Generator) -> None:
    with load(bundle, machine.flavour) as one, load(bundle, machine.flavour) as other:
        pairs = zip(one.stream(**ASKED), other.stream(**ASKED | {"seed": 4}), strict=True)
        *_, (ours, theirs) = pairs
        same(ours.result(), wanted.generate(**ASKED))
        same(theirs.result(), wanted.generate(**ASKED | {"seed": 4}))


def test_all_contexts_share_one_scratch_memory(machine: Machine, bundle: Path) -> None:
    with load(bundle, machine.flavour) as generator:
        for count in (1, 2, 3):
            generator.generate(**ASKED | {"count": count})
        assert machine.library.live()["IExecutionContext"] == 12, "condition, timestep, step and decode for each size"
        assert machine.cuda.live()["device memory"] == 3 + 1


def test_scratch_memory_grows_under_recorded_loops(
    machine: Machine, bundle: Path, wanted: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorded loop replays the addresses it was recorded with, so the smaller memory stays for it alone."""
    need = IExecutionContext.update_device_memory_size_for_shapes

    def growing(self: Any) -> int:
        batch = next(iter(self._shapes.values()))[0]
        return need(self) * int(batch) * 4

    monkeypatch.setattr(machine.library.module.IExecutionContext, need.__name__, growing)
    with load(bundle, machine.flavour) as generator:
        for count in (1, 2, 3, 1, 2):
            asked = ASKED | {"count": count}
            for ours, theirs in zip(generator.stream(**asked), wanted.stream(**asked), strict=True):
                np.testing.assert_array_equal(ours.preview(), theirs.preview())
            same(generator.generate(**asked), wanted.generate(**asked))


@each_flavour
@pytest.mark.parametrize("call", ["BeginCapture", "EndCapture"])
def test_a_loop_that_cannot_be_recorded_is_run_row_by_row_and_said_once(
    machine: Machine, bundle: Path, wanted: Generator, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    with load(bundle, machine.flavour) as generator:
        for count in (1, 2):
            machine.cuda.fail(f"cudaStream{call}", Status.cudaErrorStreamCaptureUnsupported)
            same(generator.generate(**ASKED | {"count": count}), wanted.generate(**ASKED | {"count": count}))
        same(generator.generate(**ASKED | {"count": 3}), wanted.generate(**ASKED | {"count": 3}))
        assert machine.cuda.calls.count("cudaGraphLaunch") == 1
    (said,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "can't be recorded" in said and "cudaErrorStreamCaptureUnsupported" in said


@rtx
def test_tensorrt_for_rtx_is_asked_whether_it_can_be_recorded(
    machine: Machine, bundle: Path, wanted: Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(machine.library.module.IExecutionContext, "is_stream_capturable", lambda self, stream: False)
    with load(bundle, machine.flavour) as generator:
        same(generator.generate(**ASKED), wanted.generate(**ASKED))
    assert "its stream can't be captured" in caplog.text
    assert "cudaStreamBeginCapture" not in machine.cuda.calls


@rtx
def test_compiled_kernels_are_kept_for_the_next_start(
    machine: Machine, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with load(bundle, machine.flavour) as generator:
        generator.generate(**ASKED)
        assert list(bundle.glob("engines/*/step.*.cache")), "a program may never come to close"
    caches = sorted(bundle.glob("engines/*/*.cache"))
    assert [path.name for path in caches] == [f"{role}.rtx-4090.cuda-12.8.cache" for role in ROLES]
    assert "kernels are compiled" in caplog.text
    caplog.clear()

    before = [(path.read_bytes(), path.stat().st_ino) for path in caches]
    with load(bundle, machine.flavour) as generator:
        generator.generate(**ASKED)
    assert "kernels" not in caplog.text
    assert [(path.read_bytes(), path.stat().st_ino) for path in caches] == before, "nothing new, so nothing is written"

    with load(bundle, machine.flavour) as generator:
        generator.generate(**ASKED | {"count": 2})
    assert [path.read_bytes() for path in caches] != [content for content, _ in before]


@rtx
def test_a_damaged_cache_and_a_place_that_cannot_be_written_cost_only_time(
    machine: Machine, bundle: Path, wanted: Generator, caplog: pytest.LogCaptureFixture
) -> None:
    (engines,) = (sidecar.parent for sidecar in bundle.glob("engines/*/build.json"))
    (engines / "step.rtx-4090.cuda-12.8.cache").write_bytes(b"damaged")
    (engines / "decode.rtx-4090.cuda-12.8.cache").mkdir()
    with load(bundle, machine.flavour) as generator:
        same(generator.generate(**ASKED), wanted.generate(**ASKED))
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 3
    assert "decode" in said[1] and "can't be read" in said[1]
    assert "step" in said[0] and "damaged" in said[0]
    assert "is not a file" in said[2]
    assert (engines / "step.rtx-4090.cuda-12.8.cache").read_bytes() != b"damaged"


def test_an_axis_out_of_range_names_what_to_build(machine: Machine, bundle: Path) -> None:
    with load(bundle, machine.flavour) as generator:
        with pytest.raises(MmgenError) as raised:
            generator.generate(**ASKED | {"count": 5})
        assert "step.engine: axis B, got 10, wanted 1 to 8;" in str(raised.value)
        assert str(raised.value).endswith(f"or mmgen build {bundle} --axis B=1:1:10")
        generator.generate(**ASKED)


def test_engines_for_more_samples_play_them(machine: Machine, bundle: Path, wanted: Generator) -> None:
    machine.build(bundle, axes={"B": Axis(1, 4, 10)})
    with load(bundle, machine.flavour) as generator:
        same(generator.generate(**ASKED | {"count": 5}), wanted.generate(**ASKED | {"count": 5}))


def test_a_call_that_nobody_keeps_still_runs(machine: Machine, bundle: Path) -> None:
    """Its context goes when the device is done with it, whichever thread made the call."""
    read = read_bundle(bundle)
    backend = open_backend(machine.flavour, read)
    try:
        layout = Layout()
        latents = layout.slot((1, *read.latent_shape))
        host = layout.bytes
        specs = read.graphs["decode"].outputs
        outputs = {spec.name: layout.slot((1, *map(int, spec.shape[1:])), spec.dtype) for spec in specs}
        block = backend.block(host, layout.bytes - host)
        block.host[:] = 0
        block.upload()
        calls = backend.runner(read, "decode").bind(block, [{"latents": latents, **outputs}])
        machine.cuda.calls.clear()
        thread = threading.Thread(target=calls.pop())
        thread.start()
        thread.join()
        assert machine.cuda.calls[0] == "cudaSetDevice"
        gc.collect()
        (media,) = block.read(outputs["media"])
        assert media.any()
        assert "IExecutionContext" not in machine.library.live()
    finally:
        backend.close()
