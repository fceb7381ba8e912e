"""A bundle's graphs to engines, reused or built: ``mmgen build``."""

import platform
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

from mmgen.engines import cache, memory
from mmgen.engines.compile import Job
from mmgen.engines.targets import Target
from mmgen.engines.worker import compile_apart
from mmgen.runtime.base import distribution
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Build, EngineFile, Identity, Options, require_buildable
from mmgen.runtime.builds.profiles import profiles
from mmgen.runtime.files.folders import size_text
from mmgen.runtime.storage.bundle import graph_bytes
from mmgen.runtime.storage.graph_file import graph_content
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import Axis, Bundle, Graph, HalfShare

Report = Callable[[str, float], None]

LEVELS = range(6)  # of TensorRT's optimization
LEAST = 4 << 20  # bytes that even a graph without weights counts for in progress


def build(
    bundle: Bundle,
    target: Target,
    *,
    axes: Mapping[str, Axis] | None = None,
    workspace_mib: int | None = None,
    optimization_level: int = 3,
    progress: Report | None = None,
) -> tuple[Path, Build, bool]:
    """Compile all graphs of a bundle for a target, unless that has been done.

    Args:
        bundle: as read; the engines go into its folder.
        target: of ``targets.parse``.
        axes: ranges of named axes in place of the bundle's.
        workspace_mib: device memory that a layer may use; None: all of it.
        optimization_level: 0 (fast to build) to 5 (searches longest), TensorRT's own.
        progress: called with the stage under way and the share of all work that is done.

    Returns:
        The build's folder, its sidecar, and whether it existed already.

    Raises:
        MmgenError: a bundle for CPUs alone; a bad option; the compiler fails, crashes or is killed; the bundle can't be
            written.  No partial build is left behind, and other builds stay.
    """
    require_buildable(bundle)
    if workspace_mib is not None and workspace_mib < 1:
        raise MmgenError("workspace", got=f"{workspace_mib} MiB", wanted="at least 1 MiB")
    if optimization_level not in LEVELS:
        raise MmgenError("optimization level", got=optimization_level, wanted=f"{LEVELS[0]} to {LEVELS[-1]}")
    options = Options(profiles(bundle, target.place.flavour, axes), workspace_mib, optimization_level)
    identity = Identity(cache.graph_hashes(bundle), target.place, options)
    if found := cache.find(bundle, identity):
        return *found, True
    report = progress or (lambda stage, fraction: None)
    with cache.building(bundle, identity, report) as folder:
        if found := cache.find(bundle, identity):  # by the process that was waited for
            return *found, True
        made = _make(bundle, identity, folder, report)
        cache.publish(folder, made)
    report("done", 1.0)
    return cache.folder_of(bundle, identity), made, False


def _make(bundle: Bundle, identity: Identity, folder: Path, report: Report) -> Build:
    """Compile every graph's engine, one after the other: two compilers at once would need twice the memory."""
    for role in bundle.graphs:
        graph_content(bundle, role)
    sizes = {role: LEAST + graph_bytes(bundle, graph) for role, graph in bundle.graphs.items()}
    total, before = sum(sizes.values()), 0
    engines: dict[str, EngineFile] = {}
    for role, graph in bundle.graphs.items():

        expected = _expected(bundle, graph, identity)
        stage = f"compiling {role} ({_room(expected)})"

        def part(fraction: float, stage: str = stage, start: int = before, size: int = sizes[role]) -> None:
            report(stage, (start + fraction * size) / total)

        part(0.0)
        memory.warn_if_short(f"compiling {role}", expected, memory.free_bytes(), memory.is_shared())
        job = _job(bundle, role, graph, identity, folder)
        made = compile_apart(job, part, expected=expected)
        path = Path(job.engine)
        engines[role] = EngineFile(path.name, sha256(path), path.stat().st_size, made)
        before += sizes[role]
    versions = {"mmgen": distribution.version(), "python": platform.python_version()}
    return Build(identity, engines, datetime.now(timezone.utc).isoformat(timespec="seconds"), versions)


def _expected(bundle: Bundle, graph: Graph, identity: Identity) -> int:
    """Estimate the bytes of host memory that compiling a graph takes."""
    weights, options = graph_bytes(bundle, graph), identity.options
    return memory.expected_bytes(weights, identity.place.flavour, options.workspace_mib, memory.is_shared())


def _room(expected: int) -> str:
    free = memory.free_bytes()
    return f"about {size_text(expected)} of memory" + (f", {size_text(free)} free" if free is not None else "")


def _job(bundle: Bundle, role: str, graph: Graph, identity: Identity, folder: Path) -> Job:
    place, options = identity.place, identity.options
    half = bundle.precision.half_share.get(role, HalfShare(0.0, 0.0))
    return Job(
        role=role,
        flavour=place.flavour,
        compute_capabilities=place.compute_capabilities,
        graph=str(bundle.path(graph.file).absolute()),
        inputs=graph.inputs,
        outputs=graph.outputs,
        profiles=options.profiles,
        engine=str((folder / f"{role}.engine").absolute()),
        half_operations=half.operations,
        islands=tuple(island.tensor for island in bundle.precision.islands if island.graph == role),
        workspace_mib=options.workspace_mib,
        optimization_level=options.optimization_level,
        # TensorRT for RTX times nothing when it builds; there, the calls do nothing and are to go.
        timing_cache=str(cache.timing_cache(bundle, place).absolute()) if place.flavour == "tensorrt" else None,
    )
