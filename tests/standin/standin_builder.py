"""The stand-in's Builder and what it is configured with; it refuses what the real one was seen to refuse."""

from typing import Any

from standin_network import dynamic, pack
from standin_objects import Object, Plain

STEPS = ("Cloning network graph", "Building engine from subgraph")  # phases below "Building engine"
TYPED_BY_THE_NETWORK = ("FP16", "BF16", "INT8", "FP8")  # flags that a strongly typed network refuses


class ILogger:
    """Users derive from it."""

    def __init__(self) -> None:
        self._ready = True

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError('Tried to call pure virtual function "ILogger::log"')


class Logger(ILogger):
    """Prints; the real one does too."""

    def __init__(self, min_severity: Any = None) -> None:
        super().__init__()
        self.min_severity = min_severity if min_severity is not None else type(self).Severity.WARNING

    def log(self, severity: Any, msg: str) -> None:
        if int(severity) <= int(self.min_severity):
            print(f"[TRT] {severity.name}: {msg}")  # noqa: T201


class IProgressMonitor:
    """Users derive from it."""

    def __init__(self) -> None:
        self._ready = True


class IHostMemory(bytes):
    """Bytes that the library owns; a buffer, and hardly more."""

    _library: Any

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("nbytes", "dtype"):
            raise AttributeError(f"'IHostMemory' object has no attribute {name!r}")
        return super().__getattribute__(name)

    def __len__(self) -> int:
        raise TypeError("object of type 'IHostMemory' has no len()")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("'IHostMemory' object is not subscriptable")

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    @property
    def dtype(self) -> Any:
        return self._library.module.DataType.INT8


class IOptimizationProfile(Object):
    extra_memory_target = Plain("extra_memory_target", 1.0)

    def _begin(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        shapes = [tuple(int(d) for d in shape) for shape in (min, opt, max)]
        if any(d < 0 for shape in shapes for d in shape):
            self._library.log("ERROR", "IOptimizationProfile::setDimensions: Error Code 3: x >= 0")
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        self._shapes[input] = shapes

    def get_shape(self, input: str) -> Any:
        return list(self._shapes.get(input, []))

    def __bool__(self) -> bool:
        """Whether each least shape is at most the usual one, and that at most the largest."""
        return all(
            len(least) == len(usual) == len(largest)
            and all(a <= b <= c for a, b, c in zip(least, usual, largest, strict=True))
            for least, usual, largest in self._shapes.values()
        )


class ITimingCache(Object):
    def _begin(self, data: bytes) -> None:
        self._data = bytes(data)

    def serialize(self) -> Any:
        return self._library.module.IHostMemory(self._data)

    def combine(self, input_cache: Any, ignore_mismatch: bool) -> bool:
        self._data += input_cache._data
        return True

    def reset(self) -> bool:
        self._data = b""
        return True


class IBuilderConfig(Object):
    progress_monitor = Plain("progress_monitor")
    profiling_verbosity = Plain("profiling_verbosity")
    max_aux_streams = Plain("max_aux_streams", -1)
    avg_timing_iterations = Plain("avg_timing_iterations", 1)
    tiling_optimization_level = Plain("tiling_optimization_level")
    hardware_compatibility_level = Plain("hardware_compatibility_level")
    profile_stream = Plain("profile_stream", 0)
    engine_capability = Plain("engine_capability")

    def _begin(self) -> None:
        self._level, self._pools = 3, {}
        self._profiles: list[Any] = []
        self._capabilities: list[Any] = []
        self._cache: Any = None
        self._flags = 1 << int(self._library.module.BuilderFlag.TF32)

    flags = property(lambda self: self._flags, lambda self, value: object.__setattr__(self, "_flags", value))
    num_optimization_profiles = property(lambda self: len(self._profiles))

    @property
    def builder_optimization_level(self) -> int:
        return self._level

    @builder_optimization_level.setter
    def builder_optimization_level(self, level: int) -> None:
        if level < 0:
            self._library.log("ERROR", "IBuilderConfig::setBuilderOptimizationLevel: level >= 0")
        else:
            self._level = min(level, 5)

    def set_flag(self, flag: Any) -> None:
        self._flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self._flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> int(flag) & 1)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        if pool_size < 0:
            raise TypeError("set_memory_pool_limit(): incompatible function arguments")
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return int(self._pools.get(pool, 64 << 30))

    def add_optimization_profile(self, profile: Any) -> int:
        if not profile:
            self._library.log("ERROR", "IBuilderConfig::addOptimizationProfile: Error Code 3: profile->isValid()")
            return -1
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> Any:
        return self._library.make("ITimingCache", bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self._cache

    @property
    def num_compute_capabilities(self) -> int:
        return len(self._capabilities)

    @num_compute_capabilities.setter
    def num_compute_capabilities(self, number: int) -> None:
        none = self._library.module.ComputeCapability.NONE
        self._capabilities = [*self._capabilities, *[none] * number][:number]

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        choices = self._library.module.ComputeCapability
        current = compute_capability == choices.CURRENT
        valid = 0 <= index < len(self._capabilities) and not (current and (index or len(self._capabilities) != 1))
        if compute_capability == choices.NONE or not valid:
            self._library.log("ERROR", "IBuilderConfig::setComputeCapability: Error Code 3")
            return False
        self._capabilities[index] = compute_capability
        return True

    def get_compute_capability(self, index: int) -> Any:
        return self._capabilities[index]


class Builder(Object):
    max_threads = Plain("max_threads", 2)

    def __init__(self, logger: Any) -> None:
        self._library.take_logger(logger)
        self._library.needs_device("the Builder")
        self._logger = logger

    logger = property(lambda self: self._logger)
    platform_has_fast_fp16 = property(lambda self: True)
    platform_has_tf32 = property(lambda self: True)

    def create_network(self, flags: int = 0) -> Any:
        choices = self._library.module.NetworkDefinitionCreationFlag
        if not hasattr(choices, "EXPLICIT_BATCH"):  # since TensorRT 11 networks are strongly typed, asked or not
            flags |= 1 << int(choices.STRONGLY_TYPED)
        typed = bool(flags >> int(choices.STRONGLY_TYPED) & 1)
        return self._library.make("INetworkDefinition", flags, typed)

    def create_builder_config(self) -> Any:
        return self._library.make("IBuilderConfig")

    def create_optimization_profile(self) -> Any:
        return self._library.make("IOptimizationProfile")

    def build_serialized_network(self, network: Any, config: Any) -> Any:
        if self._library.fails("build_serialized_network"):
            return self._refuse("Error Code 2: OutOfMemory (Requested size was more than the device has)")
        if not network._typed:
            raise self._library.misuse("the network isn't strongly typed: TensorRT would make a float32 engine")
        if network._model is None:
            return self._refuse("Error Code 4: API Usage Error (Network must have at least one output)")
        for name in TYPED_BY_THE_NETWORK:
            flag = getattr(self._library.module.BuilderFlag, name, None)
            if flag is not None and config.get_flag(flag):
                return self._refuse(f"Error Code 3: {name} is set and the network is strongly typed")
        problem = _profile_problem(network, config)
        if problem:
            return self._refuse(f"Error Code 4: API Usage Error ({problem})")
        if config.progress_monitor is not None and not _report(config.progress_monitor, network.num_layers):
            return self._refuse("Error Code 7: BuildCanceled (Build canceled by user)")
        return self._library.module.IHostMemory(pack(self._header(network, config), network._model))

    def _header(self, network: Any, config: Any) -> dict[str, Any]:
        library = self._library
        user = getattr(library.module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        gpu = library.cuda.gpu
        capabilities = [c.name.lower() for c in config._capabilities]
        if not capabilities or capabilities == ["current"]:
            capabilities = ["sm" + "".join(map(str, gpu.compute_capability))] if gpu else []
        return {
            "flavour": "tensorrt-rtx" if library.rtx else "tensorrt",
            "version": library.version,
            "capabilities": capabilities,
            "types": network._types,
            "inputs": network._inputs,
            "outputs": network._outputs,
            "layers": network.num_layers,
            "name": network.name,
            "profiles": [profile._shapes for profile in config._profiles],
            "user_allocation": bool(user is not None and config.get_flag(user)),
            "model_bytes": network._model.ByteSize(),
        }

    def _refuse(self, message: str) -> None:
        self._library.log("ERROR", f"IBuilder::buildSerializedNetwork: {message}")


def _profile_problem(network: Any, config: Any) -> str | None:
    """What the real builder says of profiles that don't fit the network."""
    needed = list(dynamic(network._types, network._inputs))
    if needed and not config._profiles:
        return "Network has dynamic or shape inputs, but no optimization profile has been defined."
    for index, profile in enumerate(config._profiles):
        for name in network._inputs:
            shapes, extents = profile._shapes.get(name), network._types[name][1]
            if shapes is None and name in needed:
                return f"Dynamic input tensor {name} is missing dimensions in profile {index}."
            for shape in shapes or []:
                fits = len(shape) == len(extents) and all(
                    isinstance(e, str) or e == d for e, d in zip(extents, shape, strict=True)
                )
                if not fits:
                    return f"Input tensor {name} has static dimensions that don't match in profile index {index}."
    return None


def _report(monitor: Any, layers: int) -> bool:
    """Whether the monitor lets the build go on; phases are finished in any case, as TensorRT does."""
    monitor.phase_start("Building engine", None, len(STEPS))
    for number, phase in enumerate(STEPS):
        monitor.phase_start(phase, "Building engine", layers)
        for step in range(layers):
            if not monitor.step_complete(phase, step):
                monitor.phase_finish(phase)
                monitor.phase_finish("Building engine")
                return False
        monitor.phase_finish(phase)
        if not monitor.step_complete("Building engine", number):
            monitor.phase_finish("Building engine")
            return False
    monitor.phase_finish("Building engine")
    return True
