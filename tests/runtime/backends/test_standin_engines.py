"""The stand-in's engines run on the addresses they are given, when the work runs; what a device forbids is loud."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import api
import numpy as np
from small_engine import Built, model
from standin_cuda import Cuda
from standin_device import Gpu, Status
from standin_memory import Misuse
from standin_objects import Library
from standin_tensorrt import tensorrt

from mmgen.runtime.backends.tensorrt.library import make_logger


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    """A GPU; a test that misuses it on purpose clears the list."""
    made = Cuda(Gpu("RTX 3090", (8, 6)))
    yield made
    assert not made.memory.misuses


@pytest.fixture(params=["10.3.0", "11.4.0.106", api.RTX])
def library(request: pytest.FixtureRequest, cuda: Cuda) -> Library:
    return tensorrt(request.param, cuda)


def test_standard_tensorrt_without_a_device_is_a_crash_and_tensorrt_for_rtx_is_not() -> None:
    for release in ("10.3.0", "11.4.0.106"):
        library = tensorrt(release, Cuda(None))
        for kind in ("Builder", "Runtime"):
            with pytest.raises(Misuse, match="without a CUDA device"):
                getattr(library.module, kind)(make_logger(library.module))
    library = tensorrt(api.RTX, Cuda(None))
    engine = Built(library.module).engine()
    log = make_logger(library.module)
    assert library.module.Runtime(log).deserialize_cuda_engine(engine) is None
    assert "Cuda" in log.errors[-1]


def test_a_weakly_typed_network_is_loud() -> None:
    library = tensorrt("10.3.0", Cuda())
    built = Built(library.module, b"")
    network = built.builder.create_network(0)
    assert library.module.OnnxParser(network, built.log).parse(model())
    with pytest.raises(Misuse, match="strongly typed"):
        built.builder.build_serialized_network(network, built.config(((1, 3), (2, 3), (4, 3))))


def test_an_engine_of_another_release_device_or_flavour_is_not_read(cuda: Cuda) -> None:
    old = tensorrt("10.3.0", cuda)
    engine = Built(old.module).engine()
    orin = Cuda(Gpu())
    for library in (tensorrt("10.7.0", cuda), tensorrt("11.4.0.106", cuda), tensorrt("10.3.0", orin)):
        log = make_logger(library.module)
        assert library.module.Runtime(log).deserialize_cuda_engine(engine) is None
        assert "compatible" in log.errors[-1]
        assert library.live() == {}
    rtx = tensorrt(api.RTX, orin)
    for_86 = Built(rtx.module, capabilities=("SM86", "SM89")).engine()
    log = make_logger(rtx.module)
    assert rtx.module.Runtime(log).deserialize_cuda_engine(for_86) is None
    assert rtx.module.Runtime(log).get_engine_validity(for_86)[0] == rtx.module.EngineValidity.INVALID


class Running:
    """An engine of y = x w + b on a device, with memory for it."""

    def __init__(self, library: Library, strategy: str = "USER_MANAGED", **config: str) -> None:
        self.library, self.rt, trt = library, library.cuda.module, library.module
        self.log = make_logger(trt)
        self.runtime = trt.Runtime(self.log)
        self.engine = self.runtime.deserialize_cuda_engine(Built(trt).engine())
        chosen = getattr(trt.ExecutionContextAllocationStrategy, strategy)
        self.stream = int(self.rt.cudaStreamCreateWithFlags(1)[1])
        if library.rtx:
            settings = self.engine.create_runtime_config()
            settings.set_execution_context_allocation_strategy(chosen)
            kinds = trt.DynamicShapesKernelSpecializationStrategy
            settings.dynamic_shapes_kernel_specialization_strategy = getattr(kinds, config.get("kernels", "EAGER"))
            self.context = self.engine.create_execution_context(settings)
        else:
            self.context = self.engine.create_execution_context(chosen)
        self.x, self.y, self.scratch = (self.rt.cudaMalloc(8192 << 4)[1] for _ in range(3))
        if strategy == "USER_MANAGED":
            self.context.set_device_memory(self.scratch, 8192 << 4)
        self.context.set_tensor_address("x", self.x)
        self.context.set_tensor_address("y", self.y)

    def values(self, address: int, batch: int = 2) -> np.ndarray:
        return self.library.cuda.memory.view(address, batch * 6, "test").view(np.float16).reshape(batch, 3)

    def wait(self) -> None:
        assert self.rt.cudaStreamSynchronize(self.stream)[0] == Status.cudaSuccess


@pytest.fixture
def running(library: Library) -> Running:
    return Running(library)


def test_an_engine_describes_itself(running: Running) -> None:
    trt, engine = running.library.module, running.engine
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == ["x", "y"]
    assert [engine.get_tensor_mode(n) for n in ("x", "y")] == [trt.TensorIOMode.INPUT, trt.TensorIOMode.OUTPUT]
    assert engine.get_tensor_dtype("x") == trt.DataType.HALF
    assert tuple(engine.get_tensor_shape("x")) == (-1, 3)
    assert [tuple(s) for s in engine.get_tensor_profile_shape("x", 0)] == [(1, 3), (2, 3), (4, 3)]
    assert engine.device_memory_size_v2 % 256 == 0


def test_a_run_reads_and_writes_the_addresses_when_it_runs(running: Running) -> None:
    context = running.context
    assert context.infer_shapes() == ["x"]
    assert context.set_input_shape("x", (2, 3))
    assert tuple(context.get_tensor_shape("y")) == (2, 3)
    assert context.execute_async_v3(running.stream)
    assert np.isnan(running.values(running.y)).all()
    running.values(running.x)[:] = 2  # not too late: nothing has run
    running.wait()
    expected = np.full((2, 3), 2, np.float16) @ np.arange(9, dtype=np.float16).reshape(3, 3) + 1
    assert np.array_equal(running.values(running.y), expected)
    scratch = running.library.cuda.memory.view(running.scratch, 8192 << 4, "test")
    assert (scratch == 0xFF).all()


@pytest.mark.parametrize("shape", [(5, 3), (0, 3), (2, 4), (2,)])
def test_shapes_outside_the_profile_are_refused(running: Running, shape: tuple[int, ...]) -> None:
    assert not running.context.set_input_shape("x", shape)
    assert running.log.errors
    assert not running.context.set_input_shape("nothing", (2, 3))


def test_what_is_not_set_is_refused(running: Running) -> None:
    assert not running.context.execute_async_v3(running.stream)
    assert "shapes of ['x']" in running.log.errors[-1]
    running.context.set_input_shape("x", (2, 3))
    running.context.set_tensor_address("y", 0)
    assert not running.context.execute_async_v3(running.stream)
    assert not running.context.set_tensor_address("nothing", running.x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda r: r.context.set_tensor_address("x", r.x + 128), "not a multiple of 256"),
        (lambda r: (r.context.set_tensor_address("y", r.x), r.context.execute_async_v3(r.stream)), "same memory"),
        (lambda r: (r.rt.cudaFree(r.x), r.context.execute_async_v3(r.stream)), "was freed"),
        (lambda r: (r.context.execute_async_v3(r.stream), r.rt.cudaFree(r.y), r.wait()), "was freed"),
        (lambda r: (r.context.execute_async_v3(r.stream), delattr(r, "context"), r.wait()), "was destroyed before"),
        (lambda r: r.context.execute_async_v3(r.rt.cudaStream_t(r.stream)), "an int alone"),
        (lambda r: r.context.execute_async_v3(0), "default stream"),
        (lambda r: (r.context.set_tensor_address("x", 256), r.context.execute_async_v3(r.stream)), "isn't memory"),
    ],
)
def test_what_a_device_would_answer_with_a_crash_is_loud(running: Running, wrong: Any, message: str) -> None:
    running.context.set_input_shape("x", (2, 3))
    with pytest.raises(Misuse, match=message):
        wrong(running)
    running.library.cuda.memory.misuses.clear()


def test_a_context_that_was_to_get_memory_needs_it() -> None:
    library = tensorrt("10.3.0", Cuda(Gpu("RTX 3090", (8, 6))))
    running = Running(library, "STATIC")
    running.context.set_input_shape("x", (2, 3))
    assert running.context.execute_async_v3(running.stream), "its own"
    context = running.engine.create_execution_context(library.module.ExecutionContextAllocationStrategy.USER_MANAGED)
    for name, address in (("x", running.x), ("y", running.y)):
        context.set_tensor_address(name, address)
    context.set_input_shape("x", (2, 3))
    with pytest.raises(Misuse, match="has no memory"):
        context.execute_async_v3(running.stream)
    context.set_device_memory(running.scratch, 256)
    assert "needed" in running.log.errors[-1]


def capture(running: Running) -> Any:
    mode = running.rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    running.rt.cudaStreamBeginCapture(running.stream, mode)
    assert running.context.execute_async_v3(running.stream)
    graph = running.rt.cudaStreamEndCapture(running.stream)[1]
    return running.rt.cudaGraphInstantiate(graph, 0)[1]


def test_a_captured_run_is_replayed_on_its_addresses(running: Running) -> None:
    running.context.set_input_shape("x", (2, 3))
    running.context.execute_async_v3(running.stream)
    running.wait()
    recorded = capture(running)
    running.context.set_tensor_address("y", running.scratch)  # of the next run
    for value in (0, 1):
        running.values(running.x)[:] = value
        running.rt.cudaGraphLaunch(recorded, running.stream)
        running.wait()
        assert running.values(running.y)[0, 0] == value * 9 + 1


def test_a_capture_needs_a_plain_run_first_and_lives_with_the_context_as_it_was(running: Running) -> None:
    misuses = running.library.cuda.memory.misuses
    running.context.set_input_shape("x", (2, 3))
    with pytest.raises(Misuse, match="before a plain run"):
        capture(running)
    running.rt.cudaStreamEndCapture(running.stream)
    running.context.execute_async_v3(running.stream)
    recorded = capture(running)
    running.context.set_input_shape("x", (3, 3))
    running.rt.cudaGraphLaunch(recorded, running.stream)
    with pytest.raises(Misuse, match="set otherwise"):
        running.wait()
    misuses.clear()


def test_tensorrt_for_rtx_captures_what_was_built_and_set_for_it(cuda: Cuda) -> None:
    running = Running(tensorrt(api.RTX, cuda), kernels="LAZY")
    running.context.set_input_shape("x", (2, 3))
    running.context.execute_async_v3(running.stream)
    with pytest.raises(Misuse, match="lazily"):
        capture(running)
    cuda.memory.misuses.clear()


def test_a_runtime_cache_holds_what_was_run_and_is_of_its_version(cuda: Cuda) -> None:
    running = Running(tensorrt(api.RTX, cuda))
    config = running.engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(
        running.library.module.ExecutionContextAllocationStrategy.USER_MANAGED
    )
    cache = config.create_runtime_cache()
    empty = bytes(cache.serialize())
    assert config.set_runtime_cache(cache)
    context = running.engine.create_execution_context(config)
    context.set_device_memory(running.scratch, 8192 << 4)
    for name, address in (("x", running.x), ("y", running.y)):
        context.set_tensor_address(name, address)
    context.set_input_shape("x", (2, 3))
    context.execute_async_v3(running.stream)
    full = bytes(cache.serialize())
    assert len(full) > len(empty)
    assert cache.deserialize(full)
    assert not cache.deserialize(b"of another version")
    running.wait()


def test_engines_and_contexts_are_counted_and_their_memory_is_given_back(library: Library) -> None:
    running = Running(library)
    assert library.live() == {"Runtime": 1, "ICudaEngine": 1, "IExecutionContext": 1}
    assert library.cuda.reserved > 0
    del running
    assert library.live() == {}
    assert library.cuda.reserved == 0


@pytest.mark.parametrize("name", ["deserialize_cuda_engine", "create_execution_context", "execute_async_v3"])
def test_a_method_can_be_made_to_fail_once(library: Library, name: str) -> None:
    data = Built(library.module).engine()
    library.fail(name)
    if name == "deserialize_cuda_engine":
        log = make_logger(library.module)
        assert library.module.Runtime(log).deserialize_cuda_engine(data) is None
        assert log.errors
        return
    if name == "create_execution_context":
        engine = library.module.Runtime(make_logger(library.module)).deserialize_cuda_engine(data)
        strategy = library.module.ExecutionContextAllocationStrategy.USER_MANAGED
        assert engine.create_execution_context(strategy) is None
        assert engine.create_execution_context(strategy) is not None
        return
    running = Running(library)
    running.context.set_input_shape("x", (2, 3))
    assert [running.context.execute_async_v3(running.stream) for _ in range(2)] == [False, True]
    running.wait()
