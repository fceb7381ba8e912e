"""What a request takes is reckoned before any of it is laid out, and what doesn't fit is told in one line."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.base import free_memory
from mmgen.runtime.loop import fit as room
from mmgen.runtime.loop.plan import Plan
from mmgen.runtime.request.branches import MOST, MOST_ALSO
from mmgen.runtime.request.prepare import Size

ASKED: dict[str, Any] = {"prompt": "red", "label": 1, "steps": 2}


@pytest.fixture(scope="module")
def generator(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu", threads=1) as opened:
        yield opened


def with_free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda: count)
    monkeypatch.setattr(room, "ALWAYS", 0)


def test_it_is_reckoned_with_all_that_a_plan_lays_out(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out: list[int] = []
    session = generator._opened["image"].session
    made = session.backend.block
    monkeypatch.setattr(
        session.backend, "block", lambda host, other: (laid_out.append(host + other), made(host, other))[1]
    )
    for size in (Size(3, 2, (False,) * 5, (False,) * 5), Size(2, 4, (True,) * 7, (False,) * 7)):
        Plan(generator.bundle, session.backend, session._runners, size).close()
        reckoned = room.bytes_of(generator.bundle, size, on_host=True)
        assert laid_out[-1] < reckoned < 50 * laid_out[-1]


def test_what_is_on_a_gpu_is_left_to_its_own_memory(generator: Generator) -> None:
    size = Size(3, 2, (False,) * 5, (False,) * 5)
    host, all_ = (room.bytes_of(generator.bundle, size, on_host=on_host) for on_host in (False, True))
    assert 3 * 4 * np.prod(generator.bundle.latent_shape) < host < all_ / 5


def test_more_samples_than_memory_holds_are_refused_with_those_that_fit(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 5_000_000)
    message = r"the memory, got 5 MB that are free, wanted about \d+ MB for 64 samples; ask for at most \d+ samples"
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**ASKED, count=64)
    fitting = int(str(caught.value).split("at most ")[1].split()[0])
    assert 1 < fitting < 64
    assert len(generator.generate(**ASKED, count=fitting).media) == fitting
    with pytest.raises(MmgenError, match="larger than the memory"):
        generator.generate(**ASKED, count=2 * fitting)


def test_more_steps_than_memory_holds_are_refused(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 1_500_000)
    generator.generate(**ASKED)
    with pytest.raises(MmgenError, match=r"larger than the memory, got 2 MB .* for one sample; ask for fewer steps"):
        generator.generate(**{**ASKED, "steps": 900}, solver="ddpm")


def test_latents_that_are_more_than_memory_holds_are_not_decoded(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, 5_000_000)
    latents = np.zeros((1000, *generator.bundle.latent_shape), np.float32)
    with pytest.raises(MmgenError, match=r"larger than the memory.* for 1000 samples; ask for at most \d+ samples"):
        generator.decode(latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 10**6}, "larger than the memory"),
        ({"count": MOST + 1}, f"count, got {MOST + 1}, wanted at most {MOST}"),
        ({"prompt": ["red"] * (MOST + 1)}, f"got {MOST + 1}, wanted at most {MOST}; ask for fewer at once"),
        ({"prompt": ["red"] * 1000, "count": MOST // 1000 + 1}, "count, got 1049, wanted at most 1048"),
        ({"also": [({}, 0.1)] * (MOST_ALSO + 1)}, f"also: conditions, got {MOST_ALSO + 1}, wanted at most {MOST_ALSO}"),
        ({"mask": np.broadcast_to(True, (10**12, 16, 16)), "latents": True}, "mask, got bool"),
        ({"noise": np.broadcast_to(np.float32(0), (10**12, 4, 8, 8))}, "noise, got float32"),
        ({"image": np.broadcast_to(np.uint8(0), (10**12, 16, 16, 3))}, "image, got uint8"),
        ({"label": np.broadcast_to(5, (10**7,))}, "at most"),
    ],
)
def test_sizes_that_nothing_holds_are_refused_at_once(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda: 16_000_000_000)
    if "latents" in arguments:
        arguments = {**arguments, "latents": np.zeros((1, *generator.bundle.latent_shape), np.float32)}
    clock = time.process_time()
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**{**ASKED, **arguments})
    assert time.process_time() - clock < 2 and len(str(caught.value)) < 300


def test_an_array_condition_of_absurd_size_is_not_copied() -> None:
    from mmgen.runtime.request.conditions import values
    from mmgen.runtime.storage.schema import Condition

    condition = Condition("state", "array", shape=(2, 3))
    with pytest.raises(MmgenError, match=r"condition 'state', got float64 \(1000000000000,\), wanted float32 \(2, 3\)"):
        values(condition, np.broadcast_to(0.0, (10**12,)))
    with pytest.raises(MmgenError, match=r"condition 'state', got .* larger than the memory"):
        values(condition, np.broadcast_to(0.0, (10**14, 2, 3)))


def test_a_request_that_memory_fails_after_all_is_one_clear_error(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Plan, "write", fail)
    with pytest.raises(MmgenError, match="the request is larger than the memory; ask for fewer at once"):
        generator.generate(**ASKED)
    with pytest.raises(MmgenError, match="the request is larger than the memory; ask for fewer at once"):
        next(generator.stream(**ASKED))


# what is free


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"/proc/meminfo": ["MemTotal: 9000 kB", "MemAvailable:    5000 kB"]}, 5000 << 10),
        ({"/sys/fs/cgroup/memory.max": ["max"], "/sys/fs/cgroup/memory.current": ["5"]}, None),
        ({"/sys/fs/cgroup/memory.max": ["900"], "/sys/fs/cgroup/memory.current": ["500"],
          "/sys/fs/cgroup/memory.stat": ["anon 3", "inactive_file 50"]}, 450),
        ({"/sys/fs/cgroup/memory.max": ["900"], "/sys/fs/cgroup/memory.current": ["950"]}, 0),
        ({"/proc/meminfo": ["MemAvailable: 1 kB"], "/sys/fs/cgroup/memory.max": ["9000"],
          "/sys/fs/cgroup/memory.current": ["0"]}, 1024),
    ],
)  # fmt: skip
def test_what_is_free_is_the_least_that_the_system_tells(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, list[str]], free: int | None
) -> None:
    monkeypatch.setattr(free_memory, "_lines", lambda path: files.get(path, []))
    assert free_memory.free_bytes() == free


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(free_memory, "_lines", lambda path: ["10 5 1"] if path == "/proc/self/statm" else [])
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 20, 1 << 20))
    assert free_memory.free_bytes() == (1 << 20) - 10 * resource.getpagesize()


def test_where_nothing_is_told_nothing_is_refused(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "_lines", lambda path: [])
    monkeypatch.setattr(room, "ALWAYS", 0)
    assert len(generator.generate(**ASKED, count=3).media) == 3
