"""A generator on the stand-in when things fail, and when it is used for long: never a wrong result, nothing left.

After a failure that the device survives, the same generator works; after one that ends the device, every call says so.
"""

import gc
import os
import random
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

import api
from play import OLDEST, Machine, each_flavour, same
from standin_cuda import Cuda
from standin_device import Status, gives
from standin_memory import Misuse

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.generator import generator_of
from mmgen.runtime.loop.plans import PLANS
from mmgen.runtime.storage.bundle import read_bundle

ASKED: dict[str, Any] = {"prompt": "red apple", "seed": 3, "steps": 2}
LIMIT = 300  # calls that a request may make; all of them are made to fail, one after the other
PASSING = {  # what a call answers that fails once, and the device goes on
    "cudaMalloc": Status.cudaErrorMemoryAllocation,
    "cudaMallocHost": Status.cudaErrorMemoryAllocation,
    "cudaStreamBeginCapture": Status.cudaErrorStreamCaptureUnsupported,
    "cudaStreamEndCapture": Status.cudaErrorStreamCaptureInvalidated,
    "cudaGraphInstantiate": Status.cudaErrorMemoryAllocation,
}

pytest_plugins = ["played"]


def streamed(generator: Generator, **asked: Any) -> Any:
    """The result of a stream, looked at on the way."""
    for progress in generator.stream(**asked):
        progress.preview()
        if progress.last:
            return progress.result()
    raise AssertionError("a stream without a last evaluation")


# Used for long.


@pytest.mark.parametrize("release", api.VERSIONS)
def test_any_sequence_of_requests_gives_what_onnx_runtime_gives(
    generator: Generator, wanted: Generator
) -> None:
    """More sizes than are kept, in any order, generated, streamed, left half-way and decoded."""
    chance = random.Random(7)
    seen = set()
    for number in range(30):
        asked = ASKED | {
            "seed": number,
            "steps": chance.choice([1, 2, 3]),
            "count": chance.choice([1, 2, 4]),
            "guidance": chance.choice([1.0, 4.0]),
            "solver": chance.choice(["ddim", "ddpm", "dpmpp-2m"]),
        }
        seen.add((asked["steps"], asked["count"], asked["guidance"] == 1.0))
        expected = wanted.generate(**asked)
        match chance.choice(["generate", "stream", "leave", "decode"]):
            case "generate":
                same(generator.generate(**asked), expected)
            case "stream":
                same(streamed(generator, **asked), expected)
            case "leave":
                next(generator.stream(**asked)).preview()
            case "decode":
                media, codes = generator.decode(expected.latents)
                np.testing.assert_array_equal(media, expected.media)
                np.testing.assert_array_equal(codes, expected.codes)
    assert len(seen) > PLANS


@pytest.mark.slow
@pytest.mark.parametrize(("release", "requests"), [(OLDEST, 1002), (api.RTX, 204)])
def test_short_requests_leave_nothing(machine: Machine, generator: Generator, requests: int) -> None:
    def some(number: int) -> None:
        asked = ASKED | {"steps": 1, "count": number % 6 % 4 + 1, "guidance": float(number % 6)}  # more than are kept
        if number % 3:
            generator.generate(**asked)
        else:
            next(generator.stream(**asked))

    gc.disable()  # what waits for the garbage collector is left behind
    try:
        for number in range(12):
            some(number)
        live, held = machine.live(), len(machine.cuda.handles)
        for number in range(12, 12 + requests):
            some(number)
        assert machine.live() == live
        assert len(machine.cuda.handles) == held
    finally:
        gc.enable()


def test_a_generator_that_is_closed_has_nothing_left_without_the_garbage_collector(
    machine: Machine, generator: Generator
) -> None:
    gc.collect()
    gc.disable()
    try:
        generator.generate(**ASKED)
        streamed(generator, **ASKED)
        generator.close()
        assert machine.live() == {}
    finally:
        gc.enable()


def test_engines_of_another_release_are_not_played(machine: Machine, built: Callable[[str], Path]) -> None:
    with pytest.raises(MmgenError, match=r"place\.version: found '10\.7\.0', wanted '10\.3\.0'.*; mmgen build"):
        load(built("10.7.0"), machine.flavour)


# Closed and shared.


@each_flavour
def test_closing_inside_a_stream_ends_it_and_frees_everything(machine: Machine, generator: Generator) -> None:
    stream = generator.stream(**ASKED)
    progress = next(stream)
    generator.close()
    assert machine.live() == {}
    with pytest.raises(MmgenError, match="this generator is closed"):
        next(stream)
    for look in (progress.latents, progress.preview, progress.result):
        with pytest.raises(MmgenError, match=r"closed|freed"):
            look()
    with pytest.raises(MmgenError, match="closed"):
        generator.generate(**ASKED)


@each_flavour
def test_closing_from_another_thread_ends_a_stream_that_is_half_way(machine: Machine, generator: Generator) -> None:
    stream = generator.stream(**ASKED)
    next(stream)
    closing = threading.Thread(target=generator.close)
    closing.start()
    closing.join()
    assert machine.live() == {}
    with pytest.raises(MmgenError, match="this generator is closed"):
        next(stream)


@each_flavour
def test_threads_that_generate_stream_and_decode_at_once_get_their_own_results(
    generator: Generator, wanted: Generator
) -> None:
    expected = {seed: wanted.generate(**ASKED | {"seed": seed, "count": seed % 3 + 1}) for seed in range(6)}
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        asked = ASKED | {"seed": seed, "count": seed % 3 + 1}
        try:
            for _ in range(3):
                same(generator.generate(**asked), expected[seed])
                same(streamed(generator, **asked), expected[seed])
                np.testing.assert_array_equal(generator.decode(expected[seed].latents)[0], expected[seed].media)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@each_flavour
def test_a_forked_process_leaves_the_device_alone(machine: Machine, built: Callable[[str], Path]) -> None:
    """CUDA knows nothing of it there: what it were asked for would fail, or bring the process down."""
    with load(built(machine.release), machine.flavour) as generator:
        generator.generate(**ASKED)
        stream = generator.stream(**ASKED)
        progress = next(stream)
        before = len(machine.cuda.calls), machine.library.live()
        if (child := os.fork()) == 0:
            try:
                for call in (lambda: generator.generate(**ASKED), lambda: next(stream), progress.preview):
                    with pytest.raises(MmgenError, match="was loaded in another process"):
                        call()
                with pytest.raises(MmgenError, match="CUDA can't be used in a process that was forked from one that"):
                    load(built(machine.release), machine.flavour)
                stream.close()
                generator.close()
                del stream, progress, generator
                gc.collect()
                os._exit(int((len(machine.cuda.calls), machine.library.live()) != before))
            except BaseException:
                traceback.print_exc()
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        assert next(stream).last


# Failures that the device survives.


@each_flavour
@pytest.mark.parametrize(
    ("how", "known"),
    [("generate", False), ("generate", True), ("stream", False)],
    ids=["a new size", "a known size", "a stream"],
)
def test_after_any_call_fails_once_the_same_generator_works(
    machine: Machine, built: Callable[[str], Path], wanted: Generator, how: str, known: bool
) -> None:
    expected, make = wanted.generate(**ASKED), Generator.generate if how == "generate" else streamed
    names = calls_of(machine, built, known, make)
    bundle = read_bundle(built(machine.release))  # once: a generator for each call is what takes time
    for number, name in enumerate(names, 1):
        with generator_of(bundle, machine.flavour, None) as generator:
            if known:
                make(generator, **ASKED)
            before = machine.live()
            machine.cuda.fail("", PASSING.get(name, Status.cudaErrorUnknown), number)
            try:
                same(make(generator, **ASKED), expected)  # it may go on without what failed
            except MmgenError as error:
                assert "cudaError" in str(error), f"{name}, call {number}: {error}"
            machine.cuda.heal()
            same(make(generator, **ASKED), expected)
            after = machine.live()
            assert known is False or after.get("device memory") == before.get("device memory"), f"{name}, {number}"
        assert machine.live() == {}, f"{name}, call {number} of {len(names)}"


@each_flavour
@pytest.mark.parametrize("name", ["create_execution_context", "execute_async_v3"])
def test_after_tensorrt_fails_once_the_same_generator_works(
    machine: Machine, generator: Generator, wanted: Generator, name: str
) -> None:
    failed = 0
    for number in range(1, 12):
        for count in (1, 2, 3, 4, 1):  # so many sizes that each is new
            machine.library.fail(name, number)
            asked = ASKED | {"count": count, "steps": number % 2 + 1}
            try:
                same(generator.generate(**asked), wanted.generate(**asked))
            except MmgenError as error:
                failed += 1
                assert "Error Code" in str(error)
            machine.library.heal()
            same(generator.generate(**asked), wanted.generate(**asked))
    assert failed


def test_a_device_without_room_says_what_is_free_and_goes_on_with_less(
    machine: Machine, generator: Generator, wanted: Generator
) -> None:
    expected, larger = wanted.generate(**ASKED), ASKED | {"count": 4, "steps": 3}
    same(generator.generate(**ASKED), expected)
    others = machine.cuda.free_bytes - 1024
    assert machine.cuda.reserve(others), "another program takes the rest"
    with pytest.raises(MmgenError, match=r"emory.*ask for fewer samples at once, or close other programs"):
        generator.generate(**larger)
    same(generator.generate(**ASKED), expected)
    machine.cuda.reserve(-others)
    same(generator.generate(**larger), wanted.generate(**larger))


# Failures that end the device.


@each_flavour
@pytest.mark.parametrize("how", ["generate", "stream"])
def test_after_the_device_broke_every_call_says_so_and_nothing_is_left(
    machine: Machine, built: Callable[[str], Path], wanted: Generator, how: str
) -> None:
    expected, make = wanted.generate(**ASKED), Generator.generate if how == "generate" else streamed
    bundle = read_bundle(built(machine.release))
    for number in range(1, 40):
        with generator_of(bundle, machine.flavour, None) as generator:
            machine.cuda.fail_work(Status.cudaErrorIllegalAddress, number)
            try:
                result = make(generator, **ASKED)
            except MmgenError as error:
                assert "cudaErrorIllegalAddress" in str(error) and "start the program again" in str(error)
            else:
                same(result, expected)
                assert machine.cuda.sticky == Status.cudaSuccess, "there is no more work than that"
                break
            for again in (make, streamed):
                with pytest.raises(MmgenError, match="start the program again"):
                    again(generator, **ASKED)
            with pytest.raises(MmgenError, match="start the program again"):
                generator.decode(expected.latents)
        assert machine.live() == {}, f"after work {number}"
        machine.cuda.sticky = machine.cuda.last = Status.cudaSuccess  # as a new process would find it
    else:
        pytest.fail("a request never got through")
    machine.cuda.heal()


@each_flavour
def test_a_device_that_breaks_at_any_call_is_told_and_nothing_is_left(
    machine: Machine, built: Callable[[str], Path]
) -> None:
    names = calls_of(machine, built, False, Generator.generate)
    bundle = read_bundle(built(machine.release))  # once: a generator for each call is what takes time
    for number, name in enumerate(names, 1):
        with generator_of(bundle, machine.flavour, None) as generator:
            machine.cuda.fail("", Status.cudaErrorLaunchFailure, number)
            with pytest.raises(MmgenError, match=r"cudaErrorLaunchFailure|Cuda Runtime"):
                generator.generate(**ASKED)
                generator.generate(**ASKED)  # what failed may be something that the first could do without
        assert machine.live() == {}, f"{name}, call {number} of {len(names)}"
        machine.cuda.heal()
        machine.cuda.sticky = machine.cuda.last = Status.cudaSuccess


# That these tests see anything.


def no_waiting(patch: pytest.MonkeyPatch) -> None:
    """CUDA's waits return before anything has run."""
    for name in ("cudaStreamSynchronize", "cudaEventSynchronize"):
        patch.setattr(Cuda, name, gives(0)(lambda self, handle: ()))


def test_a_wait_that_is_forgotten_shows(
    release: str, monkeypatch: pytest.MonkeyPatch, built: Callable[[str], Path], wanted: Generator
) -> None:
    machine = Machine(release, monkeypatch)
    with pytest.raises((AssertionError, MmgenError)), load(built(release), machine.flavour) as generator:
        generator.generate(**ASKED)
        with monkeypatch.context() as patch:
            no_waiting(patch)
            same(generator.generate(**ASKED | {"seed": 4}), wanted.generate(**ASKED | {"seed": 4}))


def test_memory_that_is_freed_before_its_work_is_done_shows(
    release: str, monkeypatch: pytest.MonkeyPatch, built: Callable[[str], Path]
) -> None:
    machine = Machine(release, monkeypatch)
    generator = load(built(release), machine.flavour)
    stream = generator.stream(**ASKED)
    with monkeypatch.context() as patch:
        no_waiting(patch)
        next(stream)
        with pytest.raises(Misuse, match=r"freed|destroyed"):
            generator.close()
    assert machine.cuda.memory.misuses, "kept, in case that somebody catches everything"


def calls_of(machine: Machine, built: Callable[[str], Path], known: bool, make: Callable[..., Any]) -> list[str]:
    """The CUDA calls of a request, in order."""
    with load(built(machine.release), machine.flavour) as generator:
        if known:
            make(generator, **ASKED)
        start = len(machine.cuda.calls)
        make(generator, **ASKED)
        names = machine.cuda.calls[start:]
    assert 0 < len(names) < LIMIT
    return names
