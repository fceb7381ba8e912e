"""Streams and threads: callers are served in turn, a stream's evaluations one by one; they end from anywhere."""

import asyncio
import gc
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import Cancelled, Generator, MmgenError, Stream, load
from mmgen.runtime.backends.host import HostBlock
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.backends.protocol import Block
from mmgen.runtime.loop import turns
from mmgen.runtime.loop.plans import PLANS
from mmgen.runtime.storage.bundle import read_bundle

ASKED: dict[str, Any] = {"prompt": "red apple", "seed": 3, "steps": 4}
SOON = 20.0  # seconds after which a test says that something waits for ever


class Traced(HostBlock):
    """Memory of which it is known whether it was freed."""

    closed = False

    def close(self) -> None:
        self.host[:] = 0xFF
        self.closed = True


class Watched(OrtCpu):
    """ONNX Runtime on the CPU; ``meanwhile`` is called in each evaluation, and blocks are kept for the test to see."""

    def __init__(self) -> None:
        super().__init__(import_onnxruntime(), 1)
        self.blocks: list[Traced] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.closed = False

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        self.blocks.append(Traced(host_bytes + other_bytes))
        return self.blocks[-1]

    def wait(self) -> None:
        self.meanwhile()

    def close(self) -> None:
        self.closed = True

    @property
    def held(self) -> int:
        """Blocks that aren't freed."""
        return sum(not block.closed for block in self.blocks)


class Gate:
    """An evaluation that lasts until it is let go."""

    def __init__(self, backend: Watched) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        backend.meanwhile = self._pass

    def _pass(self) -> None:
        self._entered.set()
        assert self._open.wait(SOON)

    def wait(self) -> None:
        """Return when somebody is inside."""
        assert self._entered.wait(SOON)

    def open(self) -> None:
        self._open.set()


@pytest.fixture(scope="module")
def wanted(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def backend() -> Watched:
    return Watched()


@pytest.fixture
def generator(bundle_folder: Path, backend: Watched) -> Iterator[Generator]:
    with Generator(read_bundle(bundle_folder, verify=False), backend) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[Callable[..., "Future[Any]"]]:
    """Runs a call in a thread of its own."""
    pools: list[ThreadPoolExecutor] = []

    def start(call: Callable[..., Any], *given: Any, **named: Any) -> "Future[Any]":
        pools.append(ThreadPoolExecutor(1))
        return pools[-1].submit(call, *given, **named)

    yield start
    for each in pools:
        each.shutdown()


def same(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours.latents, theirs.latents)
    np.testing.assert_array_equal(ours.media, theirs.media)


def seen(stream: Stream, between: Callable[[int], object] = lambda row: None) -> list[tuple[np.ndarray, np.ndarray]]:
    """What every evaluation shows after something has happened since it ran."""
    rows = []
    for progress in stream:
        between(progress.evaluation)
        rows.append((progress.latents(), progress.preview()))
        if progress.last:
            result = progress.result()
            rows.append((result.latents, result.media))
    return rows


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def inside(generator: Generator) -> int:
    """Threads that wait for a turn or have it."""
    return sum(lock.locked() for lock in [*generator._turns._inside.values()])


# Rows and other requests.


def test_other_requests_are_served_between_rows_and_change_nothing(generator: Generator, wanted: Generator) -> None:
    """Of the same size and of others, generated, streamed and decoded, by the thread that iterates."""
    undisturbed = seen(wanted.stream(**ASKED))
    beside = generator.stream(**ASKED | {"seed": 8})
    latents = wanted.generate(**ASKED).latents

    def others(row: int) -> None:
        for other in (ASKED | {"seed": 10 + row}, ASKED | {"count": 2, "steps": row}):
            same(generator.generate(**other), wanted.generate(**other))
        next(beside).preview()
        generator.decode(latents)
        generator.forget("condition", "timestep")

    for ours, theirs in zip(seen(generator.stream(**ASKED), others), undisturbed, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])


def test_rows_may_be_taken_by_any_thread(generator: Generator, wanted: Generator, pool: Any) -> None:
    stream, theirs = generator.stream(**ASKED), wanted.stream(**ASKED)
    for expected in theirs:
        progress = pool(next, stream).result(SOON)
        np.testing.assert_array_equal(pool(progress.preview).result(SOON), expected.preview())
        same(pool(generator.generate, **ASKED).result(SOON), wanted.generate(**ASKED))
    with pytest.raises(StopIteration):
        next(stream)


def test_threads_that_share_a_stream_get_each_row_once(generator: Generator, pool: Any) -> None:
    stream = generator.stream(**ASKED | {"steps": 40})
    taken = [pool(lambda: [progress.evaluation for progress in stream]) for _ in range(3)]
    rows = [row for one in taken for row in one.result(SOON)]
    assert sorted(rows) == list(range(1, 41))


def test_who_asks_first_is_served_first(generator: Generator, backend: Watched, pool: Any) -> None:
    gate, served = Gate(backend), []
    running = pool(generator.generate, **ASKED)
    gate.wait()

    def ask(number: int) -> None:
        generator.generate(**ASKED | {"seed": number})
        served.append(number)

    waiting: list[Future[Any]] = []
    for number in range(5):
        waiting.append(pool(ask, number))
        until(lambda: inside(generator) == 1 + len(waiting))
    gate.open()
    running.result(SOON)
    for each in waiting:
        each.result(SOON)
    assert served == list(range(5))


def test_a_stream_that_is_never_paused_leaves_turns_for_others(generator: Generator, pool: Any) -> None:
    stream = generator.stream(**ASKED | {"steps": 1000})
    next(stream)
    rows = pool(lambda: sum(1 for _ in stream))
    generator.generate(**ASKED)
    assert not rows.done(), "it was served before the stream came to its end"
    stream.close()


def test_a_call_inside_another_call_of_the_same_thread_is_an_error(generator: Generator, backend: Watched) -> None:
    """As a handler of a signal may make it."""

    def nested() -> None:
        with pytest.raises(MmgenError, match="in the middle of another one of the same thread"):
            generator.generate(**ASKED)

    backend.meanwhile = nested
    generator.generate(**ASKED)


def test_a_row_is_there_until_the_stream_goes_on_and_the_last_until_another_request(
    generator: Generator, wanted: Generator
) -> None:
    stream = generator.stream(**ASKED)
    first, second = next(stream), next(stream)
    for look in (first.latents, first.preview, first.result):
        with pytest.raises(MmgenError, match="evaluation 1 of this stream, got evaluation 2, which ran since"):
            look()
    second.preview()
    *_, last = stream
    same(last.result(), wanted.generate(**ASKED))
    generator.generate(**ASKED | {"count": 2})
    same(last.result(), wanted.generate(**ASKED))
    generator.generate(**ASKED)
    with pytest.raises(MmgenError, match="was freed, or its memory is another request's"):
        last.result()


def test_next_with_a_default_is_for_asyncio(generator: Generator, wanted: Generator) -> None:
    """``StopIteration`` can't be the result of what is awaited."""

    async def play() -> Any:
        stream = generator.stream(**ASKED)
        while progress := await asyncio.to_thread(next, stream, None):
            if progress.last:
                return await asyncio.to_thread(progress.result)

    same(asyncio.run(asyncio.wait_for(play(), SOON)), wanted.generate(**ASKED))


# Memory.


def test_streams_of_one_size_have_memory_of_their_own_and_give_it_back(generator: Generator, backend: Watched) -> None:
    streams = [generator.stream(**ASKED) for _ in range(PLANS + 2)]
    for stream in streams:
        next(stream)
    assert backend.held == len(backend.blocks) == PLANS + 2
    for stream in streams:
        stream.close()
    assert backend.held == PLANS
    for _ in range(3):
        generator.generate(**ASKED)
        next(generator.stream(**ASKED))
    assert len(backend.blocks) == PLANS + 2, "what is kept is used again"


@pytest.mark.parametrize("how", ["dropped", "closed", "cancelled", "left", "with", "finished", "in a cycle"])
def test_however_a_stream_ends_its_memory_is_the_next_one_s(generator: Generator, backend: Watched, how: str) -> None:
    for _ in range(3):
        stream = generator.stream(**ASKED)
        next(stream)
        match how:
            case "closed":
                stream.close()
            case "cancelled":
                stream.cancel()
            case "left":
                for _ in stream:
                    break
            case "with":
                with stream:
                    pass
            case "finished":
                assert len(list(stream)) == 3
            case "in a cycle":
                circle: list[Any] = [stream]
                circle.append(circle)
                del circle
        del stream
        gc.collect()
    assert len(backend.blocks) == 1


def test_a_stream_that_is_collected_inside_a_row_gives_its_memory_back_after_it(
    generator: Generator, backend: Watched
) -> None:
    """The garbage collector may come at any place, and must not wait there."""
    dropped = [generator.stream(**ASKED)]
    next(dropped[0])
    backend.meanwhile = dropped.clear
    generator.generate(**ASKED)
    backend.meanwhile = lambda: None
    assert dropped == [] and len(backend.blocks) == 2
    two = [generator.stream(**ASKED) for _ in range(2)]
    for stream in two:
        next(stream)
    assert len(backend.blocks) == 2, "both are free"


# Cancelled.


def test_a_closed_stream_has_come_to_its_end_and_a_cancelled_one_says_so(generator: Generator) -> None:
    closed, cancelled = generator.stream(**ASKED), generator.stream(**ASKED)
    for stream in (closed, cancelled):
        next(stream)
    closed.close()
    closed.close()
    cancelled.cancel()
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(closed)
        with pytest.raises(Cancelled, match="the request was cancelled"):
            next(cancelled)


def test_a_stream_can_be_cancelled_before_its_first_row_and_after_its_last(generator: Generator) -> None:
    early, late = generator.stream(**ASKED), generator.stream(**ASKED)
    early.cancel()
    with pytest.raises(Cancelled):
        next(early)
    *_, last = late
    late.cancel()
    with pytest.raises(StopIteration):
        next(late)
    assert last.result().complete


def test_a_row_that_is_running_ends_and_is_cancelled(generator: Generator, backend: Watched, pool: Any) -> None:
    gate, stream = Gate(backend), generator.stream(**ASKED)
    row = pool(next, stream)
    gate.wait()
    stream.cancel()
    assert not row.done() and backend.held == 1, "nothing is freed under a running evaluation"
    gate.open()
    with pytest.raises(Cancelled):
        row.result(SOON)
    generator.generate(**ASKED)
    assert len(backend.blocks) == 1


def test_who_waits_for_a_turn_can_be_cancelled(generator: Generator, backend: Watched, pool: Any) -> None:
    gate, event, stream = Gate(backend), threading.Event(), generator.stream(**ASKED)
    running = pool(generator.generate, **ASKED)
    gate.wait()
    waiting = [pool(generator.generate, **ASKED, cancel=event), pool(next, stream)]
    until(lambda: inside(generator) == 3)
    event.set()
    stream.cancel()
    for each in waiting:
        with pytest.raises(Cancelled):
            each.result(SOON)
    assert not running.done()
    gate.open()
    running.result(SOON)
    generator.generate(**ASKED)


def test_a_request_that_is_cancelled_ends_before_its_next_row(generator: Generator, backend: Watched) -> None:
    event, rows = threading.Event(), []

    def meanwhile() -> None:
        rows.append(1)
        if len(rows) == 5:
            event.set()

    backend.meanwhile = meanwhile
    with pytest.raises(Cancelled) as caught:
        generator.generate(**ASKED | {"steps": 1000}, cancel=event)
    assert isinstance(caught.value, MmgenError) and len(rows) == 5
    with pytest.raises(Cancelled):
        generator.generate(**ASKED, cancel=event)
    assert len(rows) == 5 and backend.held == 1, "the second wasn't begun, and the first one's memory is kept"


def test_a_request_that_could_be_cancelled_and_was_not_is_as_any_other(generator: Generator, wanted: Generator) -> None:
    same(generator.generate(**ASKED, cancel=threading.Event()), wanted.generate(**ASKED))


@pytest.mark.parametrize("cancel", [True, 1, "now", threading.Lock(), threading.Event])
def test_what_cannot_cancel_is_one_clear_line(generator: Generator, cancel: Any) -> None:
    with pytest.raises(MmgenError, match=r"cancel, got \w+, wanted a threading\.Event, or another object with is_set"):
        generator.generate(**ASKED, cancel=cancel)


# Closed.


def test_closing_ends_what_waits_at_once_and_what_runs_at_its_next_row(
    generator: Generator, backend: Watched, pool: Any
) -> None:
    gate, half_way = Gate(backend), generator.stream(**ASKED)
    half_way_row = pool(next, half_way)
    gate.wait()
    gate.open()
    progress = half_way_row.result(SOON)
    gate = Gate(backend)
    running = pool(generator.generate, **ASKED | {"steps": 1000})
    gate.wait()
    waiting = [pool(generator.generate, **ASKED), pool(next, half_way), pool(progress.preview)]
    until(lambda: inside(generator) == 4)
    closing = [pool(generator.close) for _ in range(2)]
    for each in waiting:
        with pytest.raises(MmgenError, match="this generator is closed"):
            each.result(SOON)
    assert not running.done() and not any(each.done() for each in closing)
    assert backend.held == 2 and not backend.closed, "nothing is freed under a running evaluation"
    gate.open()
    with pytest.raises(MmgenError, match="this generator is closed"):
        running.result(SOON)
    for each in closing:
        each.result(SOON)
    assert backend.held == 0 and backend.closed
    for late in (lambda: next(half_way), progress.preview, lambda: generator.generate(**ASKED)):
        with pytest.raises(MmgenError, match="this generator is closed"):
            late()
    half_way.close()
    half_way.cancel()


def test_a_call_that_closes_its_own_generator_returns_and_frees_when_it_ends(
    generator: Generator, backend: Watched
) -> None:
    """As a handler of SIGTERM does."""

    def close() -> None:
        generator.close()
        assert backend.held == 1 and not backend.closed

    backend.meanwhile = close
    with pytest.raises(MmgenError, match="this generator is closed"):
        generator.generate(**ASKED)
    assert backend.held == 0 and backend.closed


@pytest.fixture
def on_alarm() -> Iterator[Callable[[Callable[..., object]], object]]:
    """Says what SIGALRM does; what it did and when it would come, of which pytest knows, is put back."""
    handler, timer = signal.getsignal(signal.SIGALRM), signal.setitimer(signal.ITIMER_REAL, 0)
    yield lambda handle: signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def test_a_handler_of_a_signal_may_close_and_cancel_while_the_thread_waits_or_runs(
    bundle_folder: Path, on_alarm: Any
) -> None:
    """Signals come to the main thread, as fast as they can be sent, while it generates and iterates."""
    folder = read_bundle(bundle_folder, verify=False)
    for number in range(8):
        generator = Generator(folder, OrtCpu(import_onnxruntime(), 1))
        streams = [generator.stream(**ASKED | {"steps": 1000}) for _ in range(3)]
        left = list(streams)

        def handler(*_: object, generator: Generator = generator, left: list[Stream] = left) -> None:
            (left.pop().cancel if left else generator.close)()

        on_alarm(handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001 * (number + 1), 0.001)
        with pytest.raises(MmgenError, match="closed"):
            while True:
                for stream in streams:
                    try:
                        next(stream).latents()
                    except Cancelled:
                        generator.generate(**ASKED | {"steps": 1})
        signal.setitimer(signal.ITIMER_REAL, 0)
        generator.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_generator_that_was_interrupted_anywhere_goes_on(
    generator: Generator, wanted: Generator, on_alarm: Any, pool: Any
) -> None:
    """Ctrl-C comes between any two instructions; another thread would wait for ever for a turn that it left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    on_alarm(interrupt)
    expected = wanted.generate(**ASKED)
    for number in range(60):
        with suppress(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 * (number + 1))
            for _ in range(50):
                generator.generate(**ASKED | {"steps": 1})
                for progress in generator.stream(**ASKED | {"steps": 2}):
                    progress.latents()
            signal.setitimer(signal.ITIMER_REAL, 0)  # Python tells nobody of an interrupt in a finalizer
        same(pool(generator.generate, **ASKED).result(SOON), expected)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_of_its_calls_leaves_no_turn_behind(
    generator: Generator, wanted: Generator, pool: Any
) -> None:
    """One after the other; a profiler can end a function where a signal could: as it begins, and after a call."""
    expected, number, seen = wanted.generate(**ASKED | {"steps": 1}), 0, 0

    def interrupt(frame: Any, event: str, _: object) -> None:
        nonlocal seen
        if event in ("call", "c_return") and frame.f_code.co_filename == turns.__file__:
            seen += 1
            if seen == number:
                raise KeyboardInterrupt

    while number <= seen:
        number, seen = number + 1, 0
        with suppress(KeyboardInterrupt):
            sys.setprofile(interrupt)
            left = generator.stream(**ASKED | {"steps": 2})
            next(left)
            generator.generate(**ASKED | {"steps": 1})
            del left  # by now the generator is nobody's, so it is cleared away here
        sys.setprofile(None)
        same(pool(generator.generate, **ASKED | {"steps": 1}).result(SOON), expected)
        same(generator.generate(**ASKED | {"steps": 1}), expected)
    assert number > 50


def test_everything_at_once_ends(bundle_folder: Path, pool: Any) -> None:
    """Threads that generate, stream, look, leave, cancel and are cancelled, until one closes the generator."""
    backend = Watched()
    generator = Generator(read_bundle(bundle_folder, verify=False), backend)
    expected = {seed: generator.generate(**ASKED | {"seed": seed, "steps": seed + 1}) for seed in range(4)}

    def work(seed: int) -> int:
        asked, made = ASKED | {"seed": seed, "steps": seed + 1}, 0
        with pytest.raises(MmgenError, match="this generator is closed"):
            while True:
                same(generator.generate(**asked), expected[seed])
                stream = generator.stream(**asked)
                for progress in stream:
                    progress.preview()
                    if progress.last:
                        same(progress.result(), expected[seed])
                doomed = generator.stream(**asked | {"steps": 50})
                next(doomed)
                threading.Timer(0.001, doomed.cancel).start()
                with pytest.raises(Cancelled):
                    while next(doomed, None):
                        pass
                    raise Cancelled("it was too late")
                made += 1
        return made

    working = [pool(work, seed % 4) for seed in range(6)]
    time.sleep(1.0)
    generator.close()
    assert all(each.result(SOON) for each in working)
    assert backend.held == 0
