"""Streams and threads: callers are served in turn, a stream's evaluations one by one, each in memory of its own."""

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from watched import ASKED, SOON, Gate, Watched, inside, same, until

from mmgen.runtime import Generator, MmgenError, Stream
from mmgen.runtime.loop.plans import PLANS


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


def test_who_asks_first_is_served_first(
    generator: Generator, backend: Watched, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, served = Gate(backend), []
    running = pool(generator.generate, **ASKED)
    gate.wait()

    session = generator._opened["image"].session
    play = session.run

    def served_now(prepared: Any, *rest: Any) -> Any:
        served.append(prepared.request.seed)
        return play(prepared, *rest)

    monkeypatch.setattr(session, "run", served_now)

    def ask(number: int) -> None:
        generator.generate(**ASKED | {"seed": number})

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
