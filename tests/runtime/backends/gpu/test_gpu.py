"""Backends on a GPU: the same media as the CPU's, whatever way they are asked for, and no memory kept.

``make test-gpu`` runs these on the machine that has the GPU; elsewhere they skip and say why.  They have been written
without one: what they ask for was not yet seen to hold on a device.
"""

import gc
import json
import resource
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from inspector import precisions
from tolerances import LIMITS

from mmgen.engines import compile
from mmgen.engines.builder import build
from mmgen.engines.network import parse as parse_graph
from mmgen.engines.targets import parse
from mmgen.runtime import load
from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.tensorrt.library import find_library, make_logger
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench.watch import watched_generator
from mmgen.runtime.builds.engine_build import Place
from mmgen.runtime.builds.profiles import profiles
from mmgen.runtime.generator import Generator
from mmgen.runtime.loop.results import Result
from mmgen.runtime.storage import limits
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.golden import read_golden
from mmgen.runtime.storage.schema import GOLDEN, Bundle
from mmgen.runtime.verify import psnr, relative_rms, verify

BACKENDS = ("tensorrt", "tensorrt-rtx", "ort-cuda")
GENERATIONS = 1000
KEPT_BYTES = 8 << 20  # what a driver or an allocator may keep of 1,000 generations; a leak of one block is more
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


# What the tests are made of


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


@pytest.fixture(scope="module", params=BACKENDS)
def here(request: pytest.FixtureRequest, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that a GPU backend runs; its name is the backend's."""
    try:
        return built(request.param, bundle_folder, tmp_path_factory.mktemp("gpu") / request.param)
    except MmgenError as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture
def generator(here: Path) -> Iterator[Generator]:
    with load(here, here.name) as generator:
        yield generator


@pytest.fixture(scope="module")
def cpu(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu") as generator:
        yield generator


# The same media


@gpu
def test_it_makes_what_torch_made(here: Path) -> None:
    receipts = verify(here, here.name)
    assert {receipt.level for receipt in receipts} == {3, 4} and all(receipt.passed for receipt in receipts)


@gpu
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_it_makes_what_the_cpu_makes(count: int, guidance: float, generator: Generator, cpu: Generator) -> None:
    request = asked(generator.bundle, count=count, guidance=guidance)
    wanted, other = cpu.generate(**request), cpu.generate(**{**request, "seed": 4})
    require_parity(generator.generate(**request), wanted, other, generator.bundle.precision.policy)


@gpu
def test_the_largest_batch_runs_and_one_more_is_refused_by_its_axis(generator: Generator) -> None:
    if generator.backend == "ort-cuda":
        pytest.skip("it takes any size")
    largest = generator.bundle.axes["B"].max
    generator.generate(**asked(generator.bundle, count=largest, steps=1))
    with pytest.raises(MmgenError, match="axis"):
        generator.generate(**asked(generator.bundle, count=largest + 1, steps=1))


@gpu
def test_a_picture_is_the_same_in_every_batch(generator: Generator) -> None:
    alone, of_four = (generator.generate(**asked(generator.bundle, count=count)) for count in (1, 4))
    if alone.media.dtype == np.uint8:
        assert psnr(of_four.media[:1], alone.media) > LIMITS["batch PSNR"]
    else:
        assert relative_rms(of_four.media[:1], alone.media) < limits.GRAPH_RMS[generator.bundle.precision.policy]


@gpu
@pytest.mark.parametrize("interval", [None, (0.2, 5.0)], ids=["guided", "guided in part"])
def test_recorded_as_one_graph_it_is_to_the_bit_what_it_is_row_by_row(
    generator: Generator, cpu: Generator, interval: tuple[float, float] | None
) -> None:
    """The kernels and their order are the same: one graph only leaves the host out; also for two shapes of steps."""
    request = asked(generator.bundle, guidance=3.0, count=2, guidance_interval=interval)
    wanted, other = cpu.generate(**request), cpu.generate(**{**request, "seed": 4})
    require_parity(generator.generate(**request), wanted, other, generator.bundle.precision.policy)
    whole = generator.generate(**request)
    again = generator.generate(**request)
    rows, result = streamed(generator, **request)
    assert np.array_equal(whole.latents, result.latents) and np.array_equal(whole.media, result.media)
    assert np.array_equal(whole.latents, again.latents), "a replay reads the request, not what it was recorded with"
    assert np.array_equal(rows[-1], result.latents)


@gpu
def test_a_deadline_is_kept_but_for_a_step(generator: Generator) -> None:
    request = asked(generator.bundle, steps=200)
    generator.generate(**request, deadline=60)  # measures
    for deadline in (0.05, 0.2, 0.5):
        begun = time.perf_counter()
        result = generator.generate(**request, deadline=deadline)
        spent = time.perf_counter() - begun
        jitter = result.timings.jitter
        click.echo(f"deadline {deadline} s: {spent:.4f} s, {result.evaluations_run} evaluations, jitter {jitter:.6f} s")
        assert spent <= deadline + max(result.timings.steps) or result.evaluations_run == 1


@gpu
def test_a_replay_makes_the_next_request(generator: Generator, cpu: Generator) -> None:
    first, second = (asked(generator.bundle, seed=seed) for seed in (3, 4))
    generator.generate(**first)
    results = [cpu.generate(**second), cpu.generate(**first)]
    require_parity(generator.generate(**second), *results, generator.bundle.precision.policy)


@gpu
def test_sizes_can_alternate_and_a_stream_can_be_left(generator: Generator) -> None:
    request = asked(generator.bundle, guidance=3.0)
    wanted = generator.generate(**request)
    for count, guidance in ((2, 3.0), (1, 1.0), (4, 1.0), (3, 3.0), (4, 3.0)):
        generator.generate(**{**request, "count": count, "guidance": guidance})
    for row in generator.stream(**request):
        if row.evaluation == 2:
            row.preview()
            break
    assert np.array_equal(generator.generate(**request).latents, wanted.latents)


@gpu
def test_generators_in_several_threads_do_not_mix(here: Path) -> None:
    seeds = (1, 2, 3)
    results: dict[int, list[Result]] = {seed: [] for seed in seeds}
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            with load(here, here.name) as generator:
                for _ in range(10):
                    results[seed].append(generator.generate(**asked(generator.bundle, seed=seed)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with load(here, here.name) as generator:
        for seed in seeds:
            alone = generator.generate(**asked(generator.bundle, seed=seed)).latents
            assert all(np.array_equal(result.latents, alone) for result in results[seed])


# Memory


@gpu
def test_a_thousand_generations_keep_no_memory(generator: Generator) -> None:
    """On a Jetson every program shares this memory: run it alone."""
    device = open_device()
    try:
        request = asked(generator.bundle, steps=2)
        for _ in range(GENERATIONS // 10):
            generator.generate(**request)
        gc.collect()
        free, resident = device.free_bytes(), rss()
        for seed in range(GENERATIONS):
            generator.generate(**{**request, "seed": seed})
        gc.collect()
        assert free - device.free_bytes() <= KEPT_BYTES
        assert rss() - resident <= KEPT_BYTES
    finally:
        device.close()


@gpu
def test_a_closed_generator_gives_its_memory_back(here: Path) -> None:
    device = open_device()
    try:
        left = []
        for _ in range(6):
            with load(here, here.name) as generator:
                generator.generate(**asked(generator.bundle, steps=2, count=2))
            gc.collect()
            left.append(device.free_bytes())
        assert left[1] - left[-1] <= KEPT_BYTES, "the first load stays: the libraries' own"
    finally:
        device.close()


@gpu
def test_a_refused_request_keeps_no_memory(generator: Generator) -> None:
    if generator.backend == "ort-cuda":
        pytest.skip("it refuses no size")
    device = open_device()
    try:
        too_many = asked(generator.bundle, count=generator.bundle.axes["B"].max + 1, steps=1)
        free = []
        for _ in range(20):
            with pytest.raises(MmgenError):
                generator.generate(**too_many)
            gc.collect()
            free.append(device.free_bytes())
        assert free[1] - free[-1] <= KEPT_BYTES
    finally:
        device.close()


# Speed and precision


@gpu
def test_seconds_against_onnx_runtime_are_told(here: Path) -> None:
    with load(here, here.name) as ours:
        request = asked(ours.bundle, steps=None, guidance=3.0)
        try:
            theirs = load(here, "ort-cuda")
        except MmgenError as error:
            pytest.skip(f"nothing to compare with: {error}")
        with theirs:
            taken = seconds({here.name: ours, "ort-cuda": theirs}, **request)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    told = ", ".join(f"{name} {1000 * median:.2f} ms" for name, median in medians.items())
    click.echo(f"\n{here.name} / ort-cuda = {medians[here.name] / medians['ort-cuda']:.2f} ({told})")
    assert all(len(values) == RUNS for values in taken.values())


@gpu
def test_gpu_time_of_graphs_is_a_part_of_the_host_s(here: Path) -> None:
    with watched_generator(read_bundle(here), here.name, None, nvtx=False) as (generator, watch):
        request = asked(generator.bundle)
        streamed(generator, **request)
        with watch.request(timed=True):
            clock = time.perf_counter()
            for row in generator.stream(**request):
                if row.last:
                    row.result()
            host = time.perf_counter() - clock
        taken = watch.taken()
    assert len(taken["evaluation"]) == 4 and len(taken["decode"]) == 1
    assert all(value > 0 for values in taken.values() for value in values)
    assert sum(map(sum, taken.values())) < host


@gpu
def test_most_layers_of_the_engines_run_half(here: Path, tmp_path: Path) -> None:
    """As the engine's inspector says, after every fusion.  The build is repeated so that layers have types to tell."""
    if here.name == "ort-cuda":
        pytest.skip("it has no engines")
    bundle, place = read_bundle(here), parse(targets(here.name)).place
    open_device().close()  # CUDA's context, before TensorRT is touched
    library = find_library(place.flavour)
    runtime = library.Runtime(make_logger(library))
    for role in ("step", "decode"):
        engine = runtime.deserialize_cuda_engine(detailed(bundle, role, place))
        information = engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON)
        half, floating = precisions(information)
        click.echo(f"\n{here.name} {role}: {half} of {floating} layers run half")
        assert half > floating / 2


# What they are made of, where there is no GPU


def test_an_inspector_s_words_are_counted() -> None:
    layer = '{"Name": "a", "LayerType": "kgen", "Inputs": [], "Outputs": [{"Name": "x", "Dimensions": [1, 3], %s}]}'
    texts = ("Half", "Row major linear FP16 format", "Row major linear FP32", "Float", "Int64", "Row major linear BOOL")
    layers = ", ".join(layer % f'"Format/Datatype": {json.dumps(text)}' for text in texts)
    assert precisions(f'{{"Layers": [{layers}], "Bindings": ["x"]}}') == (2, 4)
    with pytest.raises(ValueError, match="detailed"):
        precisions('{"Layers": ["/a/MatMul + /b/Add"]}')


def test_an_engine_with_details_is_built(bundle_folder: Path) -> None:
    try:
        place = parse(["sm86"]).place
    except MmgenError as error:
        pytest.skip(str(error))
    assert detailed(read_bundle(bundle_folder), "step", place).nbytes > 1 << 10


def test_requests_and_figures_hold_on_the_cpu(cpu: Generator) -> None:
    """The tests above without their GPU: the CPU against itself."""
    request = asked(cpu.bundle, count=2)
    result, other = cpu.generate(**request), cpu.generate(**{**request, "seed": 4})
    require_parity(result, result, other, cpu.bundle.precision.policy)
    with pytest.raises(AssertionError):
        require_parity(other, result, other, cpu.bundle.precision.policy)
    rows, streamed_result = streamed(cpu, **request)
    assert len(rows) == 4 and np.array_equal(rows[-1], streamed_result.latents)
    assert len(seconds({"ort-cpu": cpu}, **request)["ort-cpu"]) == RUNS
    assert rss() > 1 << 20
    assert cpu.bundle.axes["B"].max >= 4, "the largest batch that is asked for"


@pytest.mark.skipif(NO_GPU is None, reason="there is a CUDA device here")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_that_can_not_be_had_says_why(backend: str, bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MmgenError) as refused:
        built(backend, bundle_folder, tmp_path / backend)
    assert str(refused.value) == NO_GPU
