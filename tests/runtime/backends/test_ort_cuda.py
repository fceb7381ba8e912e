"""ONNX Runtime's CUDA backend where there is no GPU: it never runs on the CPU in silence.

The device is a stand-in, ONNX Runtime is the real one that is installed.  What needs a GPU is in test_gpu.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

import numpy as np
import onnxruntime
from standin_cuda import Cuda

from mmgen.runtime import MmgenError, load
from mmgen.runtime.backends.ort import cpu as ort
from mmgen.runtime.backends.ort import cuda as ort_cuda

with_cuda = ort_cuda.CUDA in onnxruntime.get_available_providers()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    standin = Cuda()
    standin.install(monkeypatch)
    return standin


def test_no_device_is_the_first_reason(cuda: Cuda, bundle_folder: Path) -> None:
    cuda.gpu = None
    with pytest.raises(MmgenError, match="no NVIDIA driver"):
        load(bundle_folder, "ort-cuda")


@pytest.mark.skipif(with_cuda, reason="ONNX Runtime has CUDA here")
def test_the_package_without_cuda_is_refused(cuda: Cuda, bundle_folder: Path) -> None:
    with pytest.raises(MmgenError, match=r"this ONNX Runtime, [\d.]+, was made without CUDA; .*onnxruntime-gpu"):
        load(bundle_folder, "ort-cuda")
    assert cuda.live() == {}


@pytest.mark.skipif(not with_cuda, reason="ONNX Runtime has no CUDA here")
def test_missing_libraries_are_named(cuda: Cuda, bundle_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Only on a machine with the package for CUDA, and without CUDA."""
    if not ort_cuda.missing_library(Path(onnxruntime.__file__).parent):
        pytest.skip("CUDA's libraries are here")
    with pytest.raises(MmgenError, match=r"ONNX Runtime can't use the GPU \(lib\S+: cannot open shared object file"):
        load(bundle_folder, "ort-cuda")
    assert cuda.live() == {}
    assert capfd.readouterr() == ("", "")


def test_a_library_that_needs_another_one_is_told(tmp_path: Path) -> None:
    """What the loader says of a real library whose dependency is gone."""
    (tmp_path / "capi").mkdir()
    gone, provider = tmp_path / "libgone.so", tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    for file, more in ((gone, []), (provider, [str(gone)])):
        command = ["cc", "-shared", "-Wl,--no-as-needed", "-x", "c", "/dev/null", "-x", "none", *more, "-o", str(file)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no C compiler that links ({error})")
    gone.unlink()
    assert "libgone.so: cannot open shared object file" in ort_cuda.missing_library(tmp_path)
    assert ort_cuda.missing_library(tmp_path / "nothing") == ""


def test_the_probe_is_a_model() -> None:
    session = onnxruntime.InferenceSession(ort_cuda.PROBE, providers=[ort_cuda.CPU])
    assert [node.name for node in (*session.get_inputs(), *session.get_outputs())] == ["x", "y"]


def test_heavy_nodes_on_the_cpu_are_refused_and_shapes_are_not(bundle_folder: Path) -> None:
    """Asked of a session that runs on the CPU; each of its nodes does."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    path = bundle_folder / "graphs" / "step.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=[ort_cuda.CPU])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("this ONNX Runtime can't tell where nodes run")
    with pytest.raises(MmgenError, match=r"step: ONNX Runtime runs nodes on the CPU, got .*\d+ MatMul"):
        ort_cuda.refuse_cpu(session, "step")
    ort_cuda.refuse_cpu(told("Shape", "Gather", "Concat"), "step")


def test_graphs_are_bound_to_the_block_on_the_device(
    cuda: Cuda, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"prompt": ["red apple", "blue cat"], "seed": 3, "steps": 3}
    monkeypatch.setattr(ort, "widen", lambda graph: False)  # a GPU is given the graphs as they are
    with load(bundle_folder, "ort-cpu") as generator:
        wanted = [progress.result() for progress in generator.stream(**asked)]
    monkeypatch.setitem(sys.modules, "onnxruntime", OnCuda(cuda))
    with load(bundle_folder, "ort-cuda") as generator:
        results = [progress.result() for progress in generator.stream(**asked)]
        results.append(generator.generate(**asked))
    for ours, theirs in zip(results, [*wanted, wanted[-1]], strict=True):
        np.testing.assert_array_equal(ours.latents, theirs.latents)
        np.testing.assert_array_equal(ours.media, theirs.media)
    assert cuda.live() == {} and cuda.memory.misuses == []


def test_nothing_is_printed_where_the_backend_is_refused(bundle_folder: Path) -> None:
    """ONNX Runtime prints on stdout when it falls back, where a program may write JSON."""
    script = f"""
from mmgen.runtime import load, MmgenError
try:
    load({str(bundle_folder)!r}, "ort-cuda")
except MmgenError:
    pass
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == ""


class OnCuda(SimpleNamespace):
    """ONNX Runtime as if it had CUDA: sessions run on the CPU, on the memory of the stand-in and after its stream."""

    def __init__(self, cuda: Cuda) -> None:
        super().__init__(
            __file__=__file__,
            __version__=onnxruntime.__version__,
            SessionOptions=onnxruntime.SessionOptions,
            disable_telemetry_events=lambda: None,
            get_available_providers=lambda: [ort_cuda.CUDA, ort_cuda.CPU],
            InferenceSession=self.session,
        )
        self.cuda = cuda

    def session(self, graph: Any, options: Any, providers: Any, enable_fallback: int) -> Any:
        (name, settings), last = providers
        assert (name, last, enable_fallback, settings["use_tf32"]) == (ort_cuda.CUDA, ort_cuda.CPU, 0, "0")
        session = onnxruntime.InferenceSession(graph, options, providers=[ort_cuda.CPU])

        def io_binding() -> Any:
            binding = session.io_binding()

            def bound(bind: Any) -> Any:
                def to_cpu(tensor: str, device: str, index: int, dtype: Any, shape: Any, address: int) -> None:
                    assert (device, index) == ("cuda", 0)
                    self.cuda.memory.view(address, int(np.prod(shape)) * np.dtype(dtype).itemsize, tensor)
                    bind(tensor, "cpu", 0, dtype, shape, address)

                return to_cpu

            inputs, outputs = bound(binding.bind_input), bound(binding.bind_output)
            return SimpleNamespace(binding=binding, bind_input=inputs, bind_output=outputs)

        def run_with_iobinding(bound: Any) -> None:
            stream = self.cuda.stream(int(settings["user_compute_stream"]))
            self.cuda.run(stream, stream.pushed)
            session.run_with_iobinding(bound.binding)

        return SimpleNamespace(
            get_providers=lambda: [ort_cuda.CUDA, ort_cuda.CPU],
            get_inputs=session.get_inputs,
            get_outputs=session.get_outputs,
            io_binding=io_binding,
            run_with_iobinding=run_with_iobinding,
        )


def told(*kinds: str) -> Any:
    """A session that says these nodes run on the CPU."""
    part = SimpleNamespace(ep_name=ort_cuda.CPU, get_nodes=lambda: [SimpleNamespace(op_type=kind) for kind in kinds])
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: [part])
