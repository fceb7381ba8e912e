"""One graph of a bundle as a TensorRT engine: read, checked, and bound to memory.

A graph is bound to one execution context for all evaluations of a request; each only sets addresses.
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mmgen.runtime.backends.cuda import Device, Memory
from mmgen.runtime.backends.cuda_block import CudaBlock
from mmgen.runtime.backends.memory import ALIGNMENT, Slot
from mmgen.runtime.backends.protocol import Block, Call
from mmgen.runtime.backends.tensorrt.profile import Ranges, choose, refusal
from mmgen.runtime.backends.tensorrt.runtime_cache import RuntimeCache
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_store import build_command
from mmgen.runtime.storage.schema import Bundle, Role, TensorSpec

DTYPES = {  # types of a graph's inputs and outputs by TensorRT's names, and numpy's
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
QUOTED = 3  # of the logger's last errors

log = logging.getLogger("mmgen")


class Scratch:
    """Activation memory that all contexts share: they run one after the other."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: Memory | None = None

    def reserve(self, size: int) -> Memory:
        """Return at least ``size`` bytes; memory that was too small is freed once nothing uses it."""
        if self._memory is None or self._memory.bytes < size:
            self._memory = None  # collected first, so that the old and the new needn't fit at once
            self._memory = self._device.memory(size)
        return self._memory


@dataclass(frozen=True)
class Shared:
    """The library, logger, device and scratch memory of all engines of a backend."""

    library: Any
    logger: Any
    device: Device
    scratch: Scratch


class Context:
    """An execution context whose shapes are set; it lives as long as a call that is bound to it."""

    def __init__(self, shared: Shared, context: Any, need: int) -> None:
        self._made = [context]
        self._scratch = shared.scratch
        self._need = max(need, ALIGNMENT)  # an engine that needs some for other shapes requires memory for these too
        self._has = 0  # address of its scratch memory
        self._own: Memory | None = None
        shared.device.hold(self, self._made.clear)

    def ready(self) -> Any:
        """Return TensorRT's context, with the current scratch memory."""
        return self._with(self._own or self._scratch.reserve(self._need))

    def pin(self) -> Any:
        """Return the context with memory that it keeps from now on, as a recording replays its address."""
        self._own = self._own or self._scratch.reserve(self._need)
        return self._with(self._own)

    def _with(self, memory: Memory) -> Any:
        if not self._made:
            raise MmgenError("this graph is closed", remedy="load the bundle again")
        (context,) = self._made
        if memory.address != self._has:
            context.set_device_memory(memory.address, self._need)
            self._has = memory.address
        return context


class EngineCall:
    """A graph on slots of a block."""

    def __init__(self, runner: "EngineRunner", context: Context, addresses: tuple[tuple[str, int], ...]) -> None:
        self._runner, self._addresses = runner, addresses
        self.context = context

    def __call__(self) -> None:
        self._runner.enqueue(self.context, self._addresses)


class EngineRunner:
    """One graph as an engine."""

    def __init__(self, shared: Shared, runtime: Any, bundle: Bundle, role: Role, file: Path, content: bytes) -> None:
        self._shared, self._bundle, self._graph, self._file = shared, bundle, bundle.graphs[role], file
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        shared.device.use()
        shared.logger.errors.clear()
        self._check_validity(runtime, content)
        self._engine = runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise self._error("can't be read here")
        self._check_tensors()
        self._profiles = [self._ranges(i) for i in range(self._engine.num_optimization_profiles)]
        self._config, self._cache = self._configured()

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        if not calls:
            return []
        specs = (*self._graph.inputs, *self._graph.outputs)
        for spec in specs:
            slots = {(call[spec.name].shape, call[spec.name].dtype) for call in calls}
            if {dtype for _, dtype in slots} != {spec.dtype} or len(slots) > 1:
                raise ValueError(f"{self._file}: {spec.name}: bound to {sorted(slots)}, wanted one {spec.dtype}")
        self._shared.device.collect()
        context, memory = self._context(calls[0]), cast(CudaBlock, block)
        return [
            EngineCall(self, context, tuple((s.name, self._address(memory, s, call[s.name])) for s in specs))
            for call in calls
        ]

    def enqueue(self, bound: Context, addresses: Sequence[tuple[str, int]]) -> None:
        """Run a bound call."""
        shared = self._shared
        shared.device.use()
        shared.logger.errors.clear()
        context = bound.ready()
        for name, address in addresses:
            if not context.set_tensor_address(name, address):
                raise self._error(f"takes no address for {name}")
        if not context.execute_async_v3(shared.device.stream):
            raise self._error("can't run", "start the program again; mmgen doctor describes this machine")

    def save(self) -> None:
        """Keep the kernels compiled for the shapes so far, for the next start."""
        if self._cache is not None:
            self._cache.save()

    def close(self) -> None:
        if self._engine is None:
            return
        with suppress(MmgenError):  # of a failed device, which was raised where it failed
            self._shared.device.use()
        self.save()
        self._shared.device.release(*self._contexts)
        self._config = self._cache = self._engine = None

    def _context(self, slots: Mapping[str, Slot]) -> Context:
        """Make a context for the shapes of these slots, which all calls bound together have."""
        device, logger = self._shared.device, self._shared.logger
        shapes = {spec.name: slots[spec.name].shape for spec in self._graph.inputs}
        profile = choose(self._profiles, shapes)
        if profile is None:
            raise refusal(str(self._file), self._bundle, self._graph.inputs, self._profiles, shapes)
        logger.errors.clear()
        context = self._made_context()
        if context is None or not context.set_optimization_profile_async(profile, device.stream):
            raise self._error(f"makes no context for profile {profile}")
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._error(f"takes no {name} of shape {shape}")
        if missing := context.infer_shapes():
            raise self._error(f"doesn't know the shapes of {', '.join(missing)}")
        for spec in self._graph.outputs:
            if (made := tuple(context.get_tensor_shape(spec.name))) != (shape := slots[spec.name].shape):
                raise MmgenError(f"{self._file}: {spec.name}", got=made, wanted=shape, remedy=self._rebuild())
        need = int(context.update_device_memory_size_for_shapes())
        if need == 0 and logger.errors:  # it returns 0 for an error, too
            raise self._error("doesn't say how much memory it needs")
        bound = Context(self._shared, context, need)
        self._contexts.add(bound)
        bound.ready()  # running out of memory is reported here, before anything runs
        if logger.errors:
            raise self._error("takes no scratch memory")
        return bound

    def _made_context(self) -> Any:
        strategy = self._shared.library.ExecutionContextAllocationStrategy.USER_MANAGED
        return self._engine.create_execution_context(strategy if self._config is None else self._config)

    def _configured(self) -> tuple[Any, RuntimeCache | None]:
        """Make a runtime configuration where TensorRT has one, with TensorRT for RTX's cache of compiled kernels.

        Kernels are compiled for the shapes at once, so that a recording has the final ones; and TensorRT for RTX
        doesn't record graphs of its own, as ours hold many calls.
        """
        if not hasattr(self._engine, "create_runtime_config"):
            return None, None
        library, device, cache = self._shared.library, self._shared.device, None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            eager = library.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        if hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = library.CudaGraphStrategy.DISABLED
        if hasattr(config, "create_runtime_cache"):
            gpu = "".join(c if c.isalnum() else "-" for c in device.name.lower())
            cache = RuntimeCache(config, self._file.with_suffix(f".{gpu}.cuda-{device.driver_cuda}.cache"))
        return config, cache

    def _check_validity(self, runtime: Any, content: bytes) -> None:
        """Check with TensorRT for RTX before it reads an engine; TensorRT has no such check."""
        library = self._shared.library
        if not hasattr(runtime, "get_engine_validity"):
            return
        validity, bits = runtime.get_engine_validity(content)
        reasons = library.EngineInvalidityDiagnostics.__members__
        said = ", ".join(name.lower().replace("_", " ") for name, bit in reasons.items() if int(bit) & int(bits))
        if validity == library.EngineValidity.INVALID:
            raise self._error(f"isn't valid here, {said or f'diagnostics {int(bits)}'}")
        if validity == library.EngineValidity.SUBOPTIMAL:
            log.warning("%s may be slow here: %s", self._file, said or f"diagnostics {int(bits)}")

    def _check_tensors(self) -> None:
        """Check that the engine's inputs and outputs are the bundle's."""
        engine, library = self._engine, self._shared.library
        modes = {spec.name: (spec, library.TensorIOMode.INPUT) for spec in self._graph.inputs}
        modes |= {spec.name: (spec, library.TensorIOMode.OUTPUT) for spec in self._graph.outputs}
        if (names := {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}) != set(modes):
            raise MmgenError(f"{self._file}: tensors", got=sorted(names), wanted=sorted(modes), remedy=self._rebuild())
        for name, (spec, mode) in modes.items():
            shape = tuple(engine.get_tensor_shape(name))
            dtype = engine.get_tensor_dtype(name).name
            location = engine.get_tensor_location(name).name
            found = (engine.get_tensor_mode(name).name, DTYPES.get(dtype, dtype), location)
            if found != (mode.name, spec.dtype, "DEVICE") or not _fits(shape, spec):
                got = f"{' '.join(found)} {shape}"
                wanted = f"{mode.name} {spec.dtype} DEVICE {spec.shape}"
                raise MmgenError(f"{self._file}: {name}", got=got, wanted=wanted, remedy=self._rebuild())

    def _ranges(self, profile: int) -> Ranges:
        """Return the least, usual and largest shape of each input; of a static one the same three times."""
        engine, ranges = self._engine, {}
        for spec in self._graph.inputs:
            shape = tuple(engine.get_tensor_shape(spec.name))
            dynamic = -1 in shape
            shapes = map(tuple, engine.get_tensor_profile_shape(spec.name, profile)) if dynamic else (shape,) * 3
            least, usual, largest = shapes
            ranges[spec.name] = (least, usual, largest)
        return ranges

    def _address(self, block: CudaBlock, spec: TensorSpec, slot: Slot) -> int:
        address = block.address(slot)
        if address % ALIGNMENT:  # TensorRT documents this requirement, and doesn't check it
            raise ValueError(f"{self._file}: {spec.name}: address {address} is not a multiple of {ALIGNMENT}")
        return address

    def _error(self, what: str, remedy: str | None = None) -> MmgenError:
        """Make the error of a failure of TensorRT, with what it logged; the default remedy is to build again."""
        said = "; ".join(self._shared.logger.errors[-QUOTED:])
        if "outofmemory" in said.lower().replace(" ", ""):
            remedy = "ask for fewer samples at once, or close other programs"
        return MmgenError(f"{self._file} {what}" + (f" ({said})" if said else ""), remedy=remedy or self._rebuild())

    def _rebuild(self) -> str:
        return build_command(self._bundle)


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    """Check whether an engine's shape, -1 where it is dynamic, is the graph's; an engine's axis may be static."""
    return len(shape) == len(spec.shape) and all(
        got == want or (isinstance(want, str) and got)
        for got, want in zip(shape, spec.shape, strict=True)
    )
