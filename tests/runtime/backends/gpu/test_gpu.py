"""Backends on a GPU: the same media as the CPU's, whatever way they are asked for.

``make test-gpu`` runs these on the machine that has the GPU; elsewhere they skip and say why.  They have been written
without one: what they ask for was not yet seen to hold on a device.
"""

import threading
import time
from pathlib import Path

import click
import numpy as np
import pytest
from on_gpu import asked, gpu, require_parity, streamed
from tolerances import LIMITS

from mmgen.runtime import load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.generator import Generator
from mmgen.runtime.loop.results import Result
from mmgen.runtime.storage import limits
from mmgen.runtime.verify import psnr, relative_rms, verify


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
