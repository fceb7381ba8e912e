"""What TensorRT or CUDA refuses is told in one line with their words, and everything is freed, on the stand-in."""

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

from play import ASKED, Machine, each_flavour, rtx, same
from standin_device import Gpu, Status

from mmgen.runtime import Generator, MmgenError, load

pytest_plugins = ["played"]


@each_flavour
def test_whichever_cuda_call_fails_it_is_told_and_everything_is_freed(
    machine: Machine, bundle: Path, wanted: Generator
) -> None:
    machine.cuda.calls.clear()
    play(bundle, machine.flavour)
    calls = len(machine.cuda.calls)
    for call in range(1, calls, 5):
        machine.cuda.fail("", Status.cudaErrorUnknown, call)
        try:
            result = play(bundle, machine.flavour)
        except MmgenError as error:
            assert "cudaErrorUnknown" in str(error), error
        else:
            same(result, wanted.generate(**ASKED))
        machine.cuda.heal()
        gc.collect()
        assert machine.live() == {}, f"after call {call} of {calls}"


@each_flavour
@pytest.mark.parametrize("method", ["deserialize_cuda_engine", "create_execution_context", "execute_async_v3"])
def test_whichever_call_of_tensorrt_fails_it_is_told_and_everything_is_freed(
    machine: Machine, bundle: Path, method: str
) -> None:
    for call in (1, 2, 3):
        machine.library.fail(method, call)
        with pytest.raises(MmgenError, match=r"\.engine .*\(.*Error Code"):
            play_rows(bundle, machine.flavour)
        machine.library.heal()
        gc.collect()
        assert machine.live() == {}


def test_scratch_memory_that_is_too_small_is_told(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``set_device_memory`` returns nothing and only logs."""
    kind = machine.library.module.IExecutionContext
    monkeypatch.setattr(kind, "update_device_memory_size_for_shapes", lambda self: 0)
    with pytest.raises(MmgenError, match=r"step\.engine takes no scratch memory \(.*256 bytes, needed"):
        play(bundle, machine.flavour)


def test_out_of_memory_says_what_to_do(machine: Machine, bundle: Path) -> None:
    with load(bundle, machine.flavour) as generator:
        machine.library.fail("create_execution_context")
        with pytest.raises(MmgenError, match=r"OutOfMemory.*; ask for fewer samples at once, or close other programs"):
            generator.generate(**ASKED)
        generator.generate(**ASKED)


def test_a_device_that_breaks_is_told_once(machine: Machine, bundle: Path) -> None:
    broken = pytest.raises(MmgenError, match="cudaStreamSynchronize failed: cudaErrorIllegalAddress")
    with broken, load(bundle, machine.flavour) as generator:
        generator.generate(**ASKED)
        machine.cuda.fail_work(Status.cudaErrorIllegalAddress)
        generator.generate(**ASKED)


def test_without_a_device_tensorrt_is_not_touched(machine: Machine, bundle: Path) -> None:
    """It would crash; the stand-in calls that a misuse."""
    machine.cuda.gpu = None
    with pytest.raises(MmgenError, match="no NVIDIA driver"):
        load(bundle, "tensorrt")


def test_engines_of_another_device_are_not_played(
    bundle: Path, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.cuda.gpu = Gpu("Orin", multiprocessors=16)
    with pytest.raises(MmgenError, match=r"place.multiprocessors: found 8, wanted 16; mmgen build"):
        load(bundle, "tensorrt")


@rtx
@pytest.mark.parametrize("bits", [1 | 4, 64])
def test_what_tensorrt_for_rtx_says_of_an_engine_is_told(
    machine: Machine, bundle: Path, bits: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = {5: "version mismatch, old cuda driver", 64: "cuda error"}[bits]
    module = machine.library.module
    answer = [module.EngineValidity.INVALID]
    monkeypatch.setattr(module.Runtime, "get_engine_validity", lambda self, buffer: (answer[0], bits))
    with pytest.raises(MmgenError, match=rf"\.engine isn't valid here, {said}; mmgen build"):
        load(bundle, machine.flavour)
    answer[0] = module.EngineValidity.SUBOPTIMAL
    with load(bundle, machine.flavour):
        assert f"may be slow here: {said}" in caplog.text


def test_an_engine_that_tensorrt_does_not_take_is_told_with_its_words(
    machine: Machine, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = machine.library.module.Runtime
    monkeypatch.setattr(runtime, "deserialize_cuda_engine", lambda self, content: self._refuse("wrong version"))
    with pytest.raises(MmgenError, match=r"condition\.engine can't be read here \(.*: wrong version\); mmgen build"):
        load(bundle, machine.flavour)


def test_an_engine_of_another_graph_is_refused(machine: Machine, bundle: Path) -> None:
    """Engines that were exchanged, with the hashes of their sidecar."""
    (engines,) = (sidecar.parent for sidecar in bundle.glob("engines/*/build.json"))
    shutil.copy(engines / "decode.engine", engines / "step.engine")
    sidecar = engines / "build.json"
    record = json.loads(sidecar.read_text())
    record["engines"]["step"] |= {key: record["engines"]["decode"][key] for key in ("sha256", "bytes")}
    sidecar.write_text(json.dumps(record))
    with pytest.raises(MmgenError, match=r"step\.engine: tensors, got \['codes', 'latents', 'media'\], wanted"):
        load(bundle, machine.flavour)


@pytest.mark.parametrize(
    ("method", "answer", "got"),
    [
        ("get_tensor_dtype", "FLOAT", "INPUT float32 DEVICE"),
        ("get_tensor_location", "HOST", "INPUT int64 HOST"),
        ("get_tensor_shape", (-1, 5), r"INPUT int64 DEVICE \(-1, 5\)"),
    ],
)
def test_tensors_that_differ_from_the_bundle_are_refused(
    machine: Machine, bundle: Path, method: str, answer: Any, got: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = machine.library.module
    kind = {"get_tensor_dtype": "DataType", "get_tensor_location": "TensorLocation"}.get(method)
    other = answer if kind is None else getattr(getattr(module, kind), answer)
    monkeypatch.setattr(module.ICudaEngine, method, lambda self, name: other)
    with pytest.raises(MmgenError, match=rf"condition\.engine: \w+, got {got}.*, wanted INPUT int64 DEVICE .*; mmgen"):
        load(bundle, machine.flavour)


def play(bundle: Path, backend: str) -> Any:
    with load(bundle, backend) as generator:
        return generator.generate(**ASKED)


def play_rows(bundle: Path, backend: str) -> None:
    with load(bundle, backend) as generator:
        for _ in generator.stream(**ASKED):
            pass
