"""The stand-in's Runtime, engines and contexts: the model runs through ONNX Runtime on the addresses that were given.

It runs when the queued work does, so what lies at the addresses then is what it reads.  Scratch memory is overwritten
first, as a real engine would.
"""

import functools
import hashlib
import weakref
from typing import Any

import numpy as np
from standin_network import Dims, unpack
from standin_objects import Object, Plain

from mmgen.runtime.backends.ort.onnx_file import read_model
from mmgen.runtime.backends.ort.widen import widen

NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8"}
ALIGNMENT = 256
CONTEXT_BYTES = 1 << 16  # what a context takes beside its scratch memory


@functools.lru_cache(16)
def session(model: bytes) -> Any:
    """ONNX Runtime as the CPU backend uses it, so that tests can ask for the same to the bit."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    parsed = read_model(model)
    if parsed is not None and widen(parsed.graph):
        model = parsed.SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class Runtime(Object):
    max_threads = Plain("max_threads", 2)
    engine_host_code_allowed = Plain("engine_host_code_allowed", False)

    def __init__(self, logger: Any) -> None:
        self._library.take_logger(logger)
        self._library.needs_device("the Runtime")
        self._logger = logger
        _count(self, "Runtime")

    logger = property(lambda self: self._logger)

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        library = self._library
        library.needs_device("deserialize_cuda_engine")
        if not library.cuda.ready:
            return self._refuse("Error Code 1: Cuda Runtime (no CUDA device)")
        if library.fails("deserialize_cuda_engine"):
            return self._refuse("Error Code 2: OutOfMemory (Requested size was more than the device has)")
        try:
            header, model = unpack(bytes(serialized_engine))
        except ValueError as error:
            return self._refuse(f"Error Code 1: Serialization ({error})")
        flavour = "tensorrt-rtx" if library.rtx else "tensorrt"
        if (header["flavour"], header["version"]) != (flavour, library.version):
            return self._refuse(
                "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT, "
                f"expecting library version {library.version} got {header['version']}, please rebuild.)"
            )
        device = "sm{}{}".format(*library.cuda.gpu.compute_capability)
        if device not in header["capabilities"]:
            return self._refuse(
                "Error Code 6: API Usage Error (The engine plan file is generated on an incompatible device, "
                f"expecting compute {device} got compute {header['capabilities']}, please rebuild.)"
            )
        if not library.cuda.reserve(len(model)):
            return self._refuse("Error Code 2: OutOfMemory (Requested size was more than the device has)")
        return library.make("ICudaEngine", self, header, model, bytes(serialized_engine))

    def get_engine_validity(self, buffer: Any) -> Any:
        validity = self._library.module.EngineValidity
        try:
            header, _ = unpack(bytes(buffer))
        except ValueError:
            return validity.INVALID, 32
        gpu = self._library.cuda.gpu
        fits = gpu is not None and "sm{}{}".format(*gpu.compute_capability) in header["capabilities"]
        return (validity.VALID if fits and header["version"] == self._library.version else validity.INVALID), 0

    def _refuse(self, message: str) -> None:
        self._library.log("ERROR", f"IRuntime::deserializeCudaEngine: {message}")


class ICudaEngine(Object):
    def _begin(self, runtime: Any, header: dict[str, Any], model: bytes, data: bytes) -> None:
        self._runtime, self._header, self._model, self._data = runtime, header, model, data
        self._names = [*header["inputs"], *header["outputs"]]
        _count(self, "ICudaEngine", len(model))

    num_io_tensors = property(lambda self: len(self._names))
    num_layers = property(lambda self: self._header["layers"])
    name = property(lambda self: self._header["name"])
    num_optimization_profiles = property(lambda self: max(1, len(self._header["profiles"])))
    num_aux_streams = property(lambda self: 0)
    refittable = property(lambda self: False)
    streamable_weights_size = property(lambda self: 0)

    @property
    def device_memory_size_v2(self) -> int:
        """Differs between graphs, so that memory which contexts share must be the largest."""
        return 4096 + 512 * (hashlib.sha256(self._model).digest()[0] + 1)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return int(self.device_memory_size_v2)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._library.module.TensorIOMode
        return mode.INPUT if name in self._header["inputs"] else mode.OUTPUT if name in self._names else mode.NONE

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._library.module.DataType, self._header["types"][name][0])

    def get_tensor_shape(self, name: str) -> Any:
        return Dims(-1 if isinstance(d, str) else d for d in self._header["types"][name][1])

    def get_tensor_location(self, name: str) -> Any:
        return self._library.module.TensorLocation.DEVICE

    def get_tensor_format(self, name: str) -> Any:
        return self._library.module.TensorFormat.LINEAR

    def get_tensor_bytes_per_component(self, name: str) -> int:
        return np.dtype(NUMPY[self._header["types"][name][0]]).itemsize

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Any:
        profiles = self._header["profiles"]
        if name not in self._header["inputs"] or not 0 <= profile_index < max(1, len(profiles)):
            self._library.log("ERROR", f"ICudaEngine::getProfileShape: {name} {profile_index}")
            return []
        shapes = profiles[profile_index].get(name) if profiles else None
        return [Dims(shape) for shape in shapes or [self._header["types"][name][1]] * 3]

    def serialize(self) -> Any:
        return self._library.module.IHostMemory(self._data)

    def create_runtime_config(self) -> Any:
        return self._library.make("IRuntimeConfig")

    def create_execution_context(self, strategy: Any = None, runtime_config: Any = None) -> Any:
        library = self._library
        kinds = library.module.ExecutionContextAllocationStrategy
        known = getattr(library.module, "IRuntimeConfig", None)
        if known is not None and isinstance(strategy, known):
            strategy, runtime_config = None, strategy
        if strategy is not None and not isinstance(strategy, kinds):
            raise TypeError(f"create_execution_context(): incompatible function arguments, {strategy!r}")
        if runtime_config is not None:
            strategy = runtime_config._strategy
        strategy = kinds.STATIC if strategy is None else strategy
        if self._header["user_allocation"] and strategy != kinds.USER_MANAGED:
            raise library.misuse("the engine requires memory of the user's and the context would take its own")
        own = 0 if strategy == kinds.USER_MANAGED else self.device_memory_size_v2
        if library.fails("create_execution_context") or not library.cuda.reserve(CONTEXT_BYTES + own):
            library.log("ERROR", "IExecutionContext: Error Code 2: OutOfMemory")
            return None
        return library.make("IExecutionContext", self, strategy, own, runtime_config)


class IRuntimeConfig(Object):
    cuda_graph_strategy = Plain("cuda_graph_strategy")
    dynamic_shapes_kernel_specialization_strategy = Plain("specialization")

    def _begin(self) -> None:
        self._strategy = self._library.module.ExecutionContextAllocationStrategy.STATIC
        self._cache: Any = None
        if self._library.rtx:
            module = self._library.module
            self.cuda_graph_strategy = module.CudaGraphStrategy.DISABLED
            self.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: Any = None) -> None:
        self._strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self._strategy

    def create_runtime_cache(self) -> Any:
        return self._library.make("IRuntimeCache")

    def set_runtime_cache(self, cache: Any = None) -> bool:
        self._cache = cache
        return True

    def get_runtime_cache(self) -> Any:
        return self._cache


class IRuntimeCache(Object):
    """Holds the shapes for which kernels were compiled."""

    def _begin(self) -> None:
        self._kernels: set[str] = set()

    def serialize(self) -> Any:
        text = "\n".join([f"rtx-cache {self._library.version}", *sorted(self._kernels)])
        return self._library.module.IHostMemory(text.encode())

    def deserialize(self, blob: Any) -> bool:
        head, *kernels = bytes(blob).decode(errors="replace").split("\n")
        if head != f"rtx-cache {self._library.version}":
            return False
        self._kernels = set(kernels)
        return True

    def reset(self) -> bool:
        self._kernels.clear()
        return True


def _count(thing: Any, kind: str, size: int = 0) -> None:
    """Count it until it is destroyed, and give back the memory that it took."""
    library = thing._library
    library.counts[kind] += 1
    thing._alive = Alive()
    weakref.finalize(thing, _destroy, library, kind, size, thing._alive)


def _destroy(library: Any, kind: str, size: int, alive: "Alive") -> None:
    alive.value = False
    library.counts[kind] -= 1
    library.cuda.reserve(-size)


class Alive:
    """Whether an object still is; work that uses it holds this and not the object."""

    value = True
