"""What a backend costs on a GPU: no memory that is kept, seconds, and layers that run half."""

import gc
import statistics
import time
from pathlib import Path

import click
import pytest
from inspector import precisions
from on_gpu import RUNS, asked, detailed, gpu, rss, seconds, streamed, targets

from mmgen.engines.targets import parse
from mmgen.runtime import load
from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.tensorrt.library import find_library, make_logger
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench.watch import watched_generator
from mmgen.runtime.generator import Generator
from mmgen.runtime.storage.bundle import read_bundle

GENERATIONS = 1000
KEPT_BYTES = 8 << 20  # what a driver or an allocator may keep of 1,000 generations; a leak of one block is more

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
