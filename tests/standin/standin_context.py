"""The stand-in's execution contexts."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from standin_engine import ALIGNMENT, CONTEXT_BYTES, NUMPY, Alive, _count, session
from standin_memory import POISON
from standin_network import Dims
from standin_objects import Library, Object, Plain

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Enqueued:
    """Everything that an enqueued run uses, as it was when it was enqueued."""

    library: Library
    alive: Alive
    model: bytes
    name: str
    inputs: tuple[tuple[str, int, Shape, str], ...]  # name, address, shape, numpy's dtype
    outputs: tuple[tuple[str, int, Shape, str], ...]
    scratch: tuple[int, int] | None  # address and bytes, where the user gave it
    setting: tuple[Any, ...]
    current: list[Any]  # the context's setting, as it changes
    captured: bool

    def run(self) -> None:
        """Read, compute, write.

        Raises:
            Misuse: the context or the memory is gone, or the context has been set to other shapes since a capture.
        """
        if not self.alive.value:
            raise self.library.misuse(f"{self.name}: the context was destroyed before its work ran")
        if self.captured and self.current[0] != self.setting:
            raise self.library.misuse(f"{self.name}: a captured run is replayed after its context was set otherwise")
        if self.scratch is not None:
            self.library.cuda.memory.view(*self.scratch, f"{self.name}: scratch memory")[:] = POISON
        binding = session(self.model).io_binding()
        for tensors, bind in ((self.inputs, binding.bind_input), (self.outputs, binding.bind_output)):
            for name, address, shape, dtype in tensors:
                view(self.library, name, address, shape, dtype)
                bind(name, "cpu", 0, np.dtype(dtype).type, shape, address)
        session(self.model).run_with_iobinding(binding)


def view(library: Library, name: str, address: int, shape: Shape, dtype: str) -> tuple[int, int]:
    """The range of a tensor, checked."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    library.cuda.memory.view(address, size, f"tensor {name} {shape}", ["device", "host"])
    return address, address + size


class IExecutionContext(Object):
    name = Plain("name", "")
    debug_sync = Plain("debug_sync", False)
    enqueue_emits_profile = Plain("enqueue_emits_profile", True)
    persistent_cache_limit = Plain("persistent_cache_limit", 0)
    nvtx_verbosity = Plain("nvtx_verbosity")

    def _begin(self, engine: Any, strategy: Any, own: int, config: Any) -> None:
        self._engine, self._strategy, self._config, self._own = engine, strategy, config, own
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._profile = 0
        self._ready: Any = None  # the shapes with which it last ran outside a capture
        self._current: list[Any] = [None]
        _count(self, "IExecutionContext", CONTEXT_BYTES + own)

    engine = property(lambda self: self._engine)
    active_optimization_profile = property(lambda self: self._profile)

    def _types(self, name: str) -> tuple[str, Any]:
        return tuple(self._engine._header["types"][name])  # type: ignore[return-value]

    def _error(self, message: str) -> bool:
        self._library.log("ERROR", f"IExecutionContext::{message}")
        return False

    def set_input_shape(self, name: str, shape: Any) -> bool:
        extents = tuple(int(d) for d in shape)
        if name not in self._engine._header["inputs"]:
            return self._error(f"setInputShape: Error Code 3: {name} is no input")
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if len(extents) != len(low) or not all(a <= d <= b for a, d, b in zip(low, extents, high, strict=True)):
            return self._error(
                f"setInputShape: Error Code 3: API Usage Error (Parameter check failed, condition: engineDims.d[i] == "
                f"dims.d[i]. Set dimension of tensor {name} {extents}, profile {self._profile} has {low} to {high}.)"
            )
        self._shapes[name] = extents
        self._current[0] = self._setting()
        return True

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._error(f"setOptimizationProfileAsync: Error Code 3: profile {profile_index}")
        if self._library.cuda.stream(stream_handle).capture is not None:
            raise self._library.misuse("the profile is changed while its stream is being captured")
        if profile_index != self._profile:
            self._shapes.clear()
        self._profile = profile_index
        self._current[0] = self._setting()
        self._library.cuda.enqueue(stream_handle, "change the profile", lambda: None)
        return True

    def infer_shapes(self) -> list[str]:
        missing = [n for n in self._engine._header["inputs"] if -1 in self.get_tensor_shape(n)]
        if not missing:
            self._extents()
        return missing

    def get_tensor_shape(self, name: str) -> Any:
        if name in self._shapes:
            return Dims(self._shapes[name])
        known = self._extents() if name in self._engine._header["outputs"] else {}
        return Dims(known.get(d, -1) if isinstance(d, str) else d for d in self._types(name)[1])

    def _extents(self) -> dict[str, int]:
        """Named extents from the inputs' shapes; those of one name must be equal."""
        known: dict[str, int] = {}
        for name, shape in self._shapes.items():
            for extent, value in zip(self._types(name)[1], shape, strict=True):
                if isinstance(extent, str) and known.setdefault(extent, value) != value:
                    self._error(f"inferShapes: named dimension {extent} is {known[extent]} and {value}")
                    raise RuntimeError(f"shape inference failed: dimension {extent} of {name}")
        return known

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self._engine._names:
            return self._error(f"setTensorAddress: Error Code 3: {name} is no input or output")
        if not isinstance(memory, int):
            raise TypeError("set_tensor_address(): incompatible function arguments")
        if memory % ALIGNMENT:
            raise self._library.misuse(f"tensor {name} at {memory:#x}: not a multiple of {ALIGNMENT}")
        self._addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def update_device_memory_size_for_shapes(self) -> int:
        """All shapes need the same here; before they are set, the answer is an error and 0."""
        if missing := self.infer_shapes():
            self._error(f"updateDeviceMemorySizeForShapes: Error Code 3: shapes of {missing} aren't specified")
            return 0
        return int(self._engine.device_memory_size_v2)

    def set_device_memory(self, memory: int, size: int) -> None:
        if self._strategy != self._library.module.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise self._library.misuse("memory is given to a context that has its own")
        needed = self._engine.device_memory_size_v2
        if size < needed:
            self._error(f"setDeviceMemoryV2: Error Code 3: {size} bytes, needed {needed}")
            return
        if memory % ALIGNMENT:
            raise self._library.misuse(f"scratch memory at {memory:#x}: not a multiple of {ALIGNMENT}")
        self._library.cuda.memory.view(memory, size, "scratch memory")
        self._scratch = (memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self._engine._header["user_allocation"])

    def get_runtime_config(self) -> Any:
        return self._config

    def _setting(self) -> tuple[Any, ...]:
        return (self._profile, tuple(sorted(self._shapes.items())))

    def execute_async_v3(self, stream_handle: int) -> bool:
        library, cuda = self._library, self._library.cuda
        if type(stream_handle) is not int:
            raise library.misuse(f"execute_async_v3({stream_handle!r}): older releases take an int alone")
        with cuda.lock:
            capture = cuda.stream(stream_handle).capture
            if not cuda.ready:
                return self._error("enqueueV3: Error Code 1: Cuda Runtime")
            if library.fails("execute_async_v3"):
                return self._error("enqueueV3: Error Code 1: Cuda Runtime (made to fail)")
            if missing := self.infer_shapes():
                return self._error(f"enqueueV3: Error Code 3: shapes of {missing} aren't specified")
            if missing := [name for name in self._engine._names if not self._addresses.get(name)]:
                return self._error(f"enqueueV3: Error Code 3: address of {missing[0]} is not set")
            if capture is not None:
                self._check_capture()
            work = self._work(capture is not None)
            cuda.enqueue(stream_handle, f"run {self._engine.name}", work.run)
            if capture is None:
                self._ready = self._setting()
                if self._config is not None and self._config._cache is not None:
                    self._config._cache._kernels.add(f"{self._engine.name} {self._ready}")
            return True

    def _check_capture(self) -> None:
        """What makes a capture fail or fix the wrong thing."""
        library = self._library
        if self._ready != self._setting():
            raise library.misuse("a run is captured before a plain run with these shapes: updates are deferred to it")
        if library.rtx:
            if not self.is_stream_capturable(0):
                raise library.misuse("the engine was built without REQUIRE_USER_ALLOCATION: it may not be capturable")
            kinds = library.module.DynamicShapesKernelSpecializationStrategy
            if self._config is None or self._config.dynamic_shapes_kernel_specialization_strategy == kinds.LAZY:
                raise library.misuse("kernels are specialised lazily: a capture would keep the fallback kernels")
            if self._config.cuda_graph_strategy != library.module.CudaGraphStrategy.DISABLED:
                raise library.misuse("TensorRT for RTX captures graphs itself while a stream is being captured")

    def _work(self, captured: bool) -> Enqueued:
        library, header = self._library, self._engine._header
        tensors: dict[str, tuple[str, int, Shape, str]] = {}
        ranges: dict[str, tuple[int, int]] = {}
        for name in self._engine._names:
            shape, dtype = tuple(self.get_tensor_shape(name)), NUMPY[self._types(name)[0]]
            tensors[name] = (name, self._addresses[name], shape, dtype)
            ranges[name] = view(library, name, self._addresses[name], shape, dtype)
        scratch = None
        if self._strategy == library.module.ExecutionContextAllocationStrategy.USER_MANAGED:
            if self._scratch is None:
                raise library.misuse("the context has no memory: its user was to give it some")
            scratch = self._scratch
            ranges["scratch memory"] = (scratch[0], sum(scratch))
        for written in (*header["outputs"], *(["scratch memory"] if scratch else [])):
            first, last = ranges[written]
            for other, (start, end) in ranges.items():
                if other != written and first < end and start < last:
                    raise library.misuse(f"{written} and {other} lie in the same memory")
        return Enqueued(
            library, self._alive, self._engine._model, f"engine {self._engine.name!r}",
            tuple(tensors[n] for n in header["inputs"]), tuple(tensors[n] for n in header["outputs"]),
            scratch, self._setting(), self._current, captured,
        )  # fmt: skip
