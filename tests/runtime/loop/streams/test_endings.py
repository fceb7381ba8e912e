"""Streams and requests end from anywhere: cancelled, closed or interrupted, by any thread and by signals."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from watched import ASKED, SOON, Gate, Watched, inside, same, until

from mmgen.runtime import Cancelled, Generator, MmgenError, Stream
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.loop import turns
from mmgen.runtime.storage.bundle import read_bundle

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
