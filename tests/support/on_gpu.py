"""What tests on a GPU are made of: engines for it, requests, and figures of two backends."""

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmgen.engines import compile
from mmgen.engines.builder import build
from mmgen.engines.network import parse as parse_graph
from mmgen.engines.targets import parse
from mmgen.runtime import load
from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.tensorrt.library import find_library, make_logger
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Place
from mmgen.runtime.builds.profiles import profiles
from mmgen.runtime.generator import Generator
from mmgen.runtime.loop.results import Result
from mmgen.runtime.storage import limits
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.golden import read_golden
from mmgen.runtime.storage.schema import GOLDEN, Bundle
from mmgen.runtime.verify import relative_rms

BACKENDS = ("tensorrt", "tensorrt-rtx", "ort-cuda")
RUNS = 20  # of each backend, when they are timed


def why_not() -> str | None:
    """Why there is no GPU."""
    try:
        open_device().close()
    except MmgenError as error:
        return str(error)
    return None


NO_GPU = why_not()


def gpu(test: Callable[..., None]) -> Callable[..., None]:
    """A test that needs a GPU; a Jetson builds an engine in minutes."""
    skip = pytest.mark.skipif(NO_GPU is not None, reason=NO_GPU or "")
    return pytest.mark.gpu(pytest.mark.timeout(3600)(skip(test)))


def targets(backend: str) -> list[str]:
    """What to build for this device."""
    if backend == "tensorrt":
        return ["host"]
    device = open_device()
    try:
        return [device.compute_capability]
    finally:
        device.close()


def built(backend: str, bundle: Path, folder: Path) -> Path:
    """A copy of a bundle with engines for a backend, and for no other.

    Raises:
        MmgenError: the backend can't be had here.
    """
    open_device().close()
    copy = Path(shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("engines")))
    if backend != "ort-cuda":
        find_library("tensorrt" if backend == "tensorrt" else "tensorrt-rtx")
        build(read_bundle(copy), parse(targets(backend)))
    load(copy, backend).close()
    return copy


def detailed(bundle: Bundle, role: str, place: Place) -> Any:
    """One graph's engine, whose inspector can tell the types of layers; otherwise as ``mmgen build`` makes it."""
    library, graph = find_library(place.flavour), bundle.graphs[role]
    job = compile.Job(
        role=role, flavour=place.flavour, compute_capabilities=place.compute_capabilities,
        graph=str(bundle.path(graph.file)), inputs=graph.inputs, outputs=graph.outputs,
        profiles=profiles(bundle, place.flavour), engine="",
    )  # fmt: skip
    parsed = parse_graph(library, make_logger(library), job.flavour, job.role, Path(job.graph))
    config = compile._config(library, parsed.builder, job)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    return parsed.builder.build_serialized_network(parsed.network, config)


def asked(bundle: Bundle, **request: Any) -> dict[str, Any]:
    """A request for one condition, that of the bundle's golden."""
    golden = read_golden(bundle.path(GOLDEN))
    conditions = {name: values[:1] for name, values in golden.conditions.items()}
    return {"solver": golden.solver, "sigmas": golden.sigmas, "steps": 4, "seed": 3, **conditions, **request}


def require_parity(got: Result, wanted: Result, other: Result, policy: str) -> None:
    """Two backends' results of one request; ``other`` has another seed and says how much samples differ."""
    apart = relative_rms(other.latents, wanted.latents)
    limit = max(limits.TRAJECTORY_SHARE[policy] * apart, limits.TRAJECTORY_RMS[policy])
    assert relative_rms(got.latents, wanted.latents) <= limit


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def streamed(generator: Generator, **request: Any) -> tuple[list[Any], Result]:
    """Latents after every evaluation, and the result."""
    latents = []
    for row in generator.stream(**request):
        latents.append(row.latents())
        if row.last:
            result = row.result()
    return latents, result


def seconds(generators: dict[str, Generator], **request: Any) -> dict[str, list[float]]:
    """Wall-clock seconds of a generation, interleaved so that all meet the same clocks and temperatures."""
    taken: dict[str, list[float]] = {name: [] for name in generators}
    for run in range(RUNS + 2):
        for name, generator in generators.items():
            clock = time.perf_counter()
            generator.generate(**request)
            if run >= 2:  # the first binds and records
                taken[name].append(time.perf_counter() - clock)
    return taken
