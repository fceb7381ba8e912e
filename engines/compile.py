"""One graph to one engine, in this process: the same calls for TensorRT 10.3 to 11 and TensorRT for RTX.

Tested with TensorRT for RTX, without a GPU; the calls are those that TensorRT's bindings have in every release, but
building with TensorRT itself has not been run on a device.
"""

import os
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmgen.engines.activations import elu_to_selu
from mmgen.engines.network import check_tensors, count, parse, require_half, title
from mmgen.engines.phases import monitor
from mmgen.engines.turing import TURING, products_to_convolutions
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Flavour, GraphReport
from mmgen.runtime.builds.profiles import dynamic_shapes
from mmgen.runtime.files.atomic import whole_file
from mmgen.runtime.storage.schema import Axis, Role, TensorSpec

PARSED = 0.05  # share of the time that parsing takes
ERRORS = 3  # how many of the compiler's last errors are reported
REMEDIES: dict[Flavour, str] = {
    "tensorrt": "if memory ran out, cap the workspace (--workspace 1024), else use a newer TensorRT",
    "tensorrt-rtx": "leave out the target that it names, or use a newer TensorRT for RTX",
}


@dataclass(frozen=True)
class Job:
    """Everything that compiling a graph needs, as JSON can carry it."""

    role: Role
    flavour: Flavour
    compute_capabilities: tuple[str, ...]
    graph: str  # the ONNX file
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[dict[str, Axis], ...]
    engine: str  # the file to write
    half_operations: float = 0.0  # share of the graph's operations that the bundle says are half
    islands: tuple[str, ...] = ()  # tensors of this graph that the bundle keeps in float32
    workspace_mib: int | None = None  # None: TensorRT's default, all of the device
    optimization_level: int = 3
    timing_cache: str | None = None  # a file to read and to write; None: no cache


@dataclass(frozen=True)
class Events:
    """Callbacks of a compilation under way."""

    fraction: Callable[[float], None]
    warning: Callable[[str], None]


def compile_graph(library: ModuleType, logger: Any, job: Job, events: Events) -> GraphReport:
    """Compile a graph and write its engine atomically.

    Args:
        library: ``tensorrt``, after CUDA said that there is a device, or ``tensorrt_rtx``.
        logger: of ``runtime.library.make_logger``, the process's only one.
        job: what to compile.
        events: called with progress and with warnings for the user.

    Raises:
        MmgenError: the graph can't be parsed, isn't what the bundle says, or can't be compiled; the file can't be
            written.
    """
    clock = time.perf_counter()
    parsed = parse(library, logger, job.flavour, job.role, Path(job.graph))
    check_tensors(parsed.network, job.inputs, job.outputs, job.role)
    counts = count(library, parsed.network, job.islands)
    require_half(counts, job.role, job.half_operations)
    events.fraction(PARSED)
    turing = job.flavour == "tensorrt-rtx" and TURING in job.compute_capabilities
    kernels = products_to_convolutions(library, parsed.network) if turing else []
    if job.flavour == "tensorrt-rtx":
        elu_to_selu(library, parsed.network)

    config = _config(library, parsed.builder, job)
    progress = monitor(library, lambda fraction: events.fraction(PARSED + (1 - PARSED) * fraction))
    config.progress_monitor = progress
    cache = timing_cache(config, Path(job.timing_cache), events.warning) if job.timing_cache else None
    del logger.errors[:]
    engine = parsed.builder.build_serialized_network(parsed.network, config)
    del kernels  # until here TensorRT read them where they are
    if engine is None:
        devices = ", ".join(job.compute_capabilities)
        reasons = [textwrap.shorten(line, 300, placeholder=" ...") for line in logger.errors[-ERRORS:]]
        raise MmgenError(
            f"graph {job.role}: {title(job.flavour, library)} can't compile it for {devices}",
            got="; ".join(reasons) or "no reason",
            remedy=REMEDIES[job.flavour],
        )
    with whole_file(Path(job.engine)) as write:
        write(engine)
    if cache is not None:
        save_timing_cache(config, Path(job.timing_cache or ""), events.warning)
    return GraphReport(
        layers=counts.layers,
        half_layers=counts.half_layers,
        float_layers=counts.float_layers,
        half_weight_bytes=counts.half_weight_bytes,
        float_weight_bytes=counts.float_weight_bytes,
        islands=counts.islands,
        seconds=time.perf_counter() - clock,
        peak_bytes=peak_bytes(),
    )


def timing_cache(config: Any, path: Path, warning: Callable[[str], None]) -> Any:
    """Attach the timings of earlier builds; replace those of another device or a damaged file, with a warning."""
    try:
        known = path.read_bytes()
    except FileNotFoundError:
        known = b""  # the first build
    except OSError as error:
        known = b""
        warning(f"{path} can't be read ({error.strerror}); timing again")
    for content in (known, b"") if known else (b"",):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):  # False: of this device only
            return cache
        if content:
            warning(f"{path} is damaged or of another device; timing again")
    return None


def save_timing_cache(config: Any, path: Path, warning: Callable[[str], None]) -> None:
    """Keep the timings for later builds; if they can't be written, which costs only time, warn."""
    try:
        with whole_file(path) as write:
            write(config.get_timing_cache().serialize())
    except MmgenError as error:
        warning(str(error))


def peak_bytes() -> int:
    """Return the most memory that this process has had resident.

    On Linux ``getrusage`` counts what the parent had when it started this process, so /proc is read first.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _peak_by_usage()
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), None)
    return int(peak) * 1024 if peak else _peak_by_usage()


def _peak_by_usage() -> int:
    if os.name != "posix":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _config(library: ModuleType, builder: Any, job: Job) -> Any:
    config = builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # on by default, and float32 islands are there for their precision
    config.profiling_verbosity = library.ProfilingVerbosity.LAYER_NAMES_ONLY  # profilers can tell layers apart
    config.builder_optimization_level = job.optimization_level
    if job.workspace_mib is not None:
        pool = library.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, job.workspace_mib << 20)
        if (got := config.get_memory_pool_limit(pool)) != job.workspace_mib << 20:  # it returns nothing and goes on
            raise MmgenError("workspace", got=f"{job.workspace_mib} MiB", wanted=f"at most {got >> 20} MiB")
    if hasattr(config, "set_compute_capability"):  # TensorRT for RTX; TensorRT builds for the device it is on
        config.num_compute_capabilities = len(job.compute_capabilities)
        for i, name in enumerate(job.compute_capabilities):
            if not config.set_compute_capability(getattr(library.ComputeCapability, name.upper()), i):
                raise MmgenError("target", got=name, wanted=f"one that {title(job.flavour, library)} builds for")
    if hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT for RTX documents it for recorded loops
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    for ranges in dynamic_shapes(job.inputs, job.profiles):
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise MmgenError(f"graph {job.role}: profile", got=ranges, remedy="choose other ranges for the axes")
    return config
