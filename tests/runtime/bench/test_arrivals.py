"""``mmgen bench --rate``: requests that are due at fixed times, and what a slow one costs those behind it."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import done, mmgen

from mmgen.runtime.bench import arrivals as module
from mmgen.runtime.bench.arrivals import Arrivals, Schedule, arrivals, schedule

QUICK = ("--backend=ort-cpu", "--warmup=1", "--starts=0", "--steps=2", "--threads=1")


class Clock:
    """A clock that only moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=made.perf_counter, sleep=made.sleep))
    return made


def served(clock: Clock, plan: Schedule, takes: Sequence[float]) -> tuple[list[float], Arrivals]:
    """When requests began, and how they were served, if each takes so long; the last one's time is that of the rest."""
    start, begins, latencies = clock.now, [], []
    for number, due in enumerate(plan.due()):
        begins.append(clock.now - start)
        clock.now += takes[min(number, len(takes) - 1)]
        latencies.append(clock.now - due)
    return begins, arrivals(plan, latencies)


def test_requests_begin_when_they_are_due_where_each_is_done_in_time(clock: Clock) -> None:
    begins, found = served(clock, schedule(4.0, None, 5, math.inf), [0.125])
    assert begins == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (found.due, found.done, found.late, found.queue) == (5, 5, 0, 0)
    assert found.deadline == 0.25
    assert (found.latency.min, found.latency.max) == (0.125, 0.125)


def test_a_slow_request_makes_those_behind_it_late_too(clock: Clock) -> None:
    begins, found = served(clock, schedule(4.0, None, 8, math.inf), [1.0, 0.125])
    assert begins == [0.0, 1.0, 1.125, 1.25, 1.375, 1.5, 1.625, 1.75]
    # Due every 0.25 s: they took 1, 0.875, 0.75, ... 0.125 s.  Counted from their beginning, seven took 0.125 s.
    assert (found.done, found.late, found.queue) == (8, 6, 0)
    assert (found.latency.p50, found.latency.max) == (0.5625, 1.0)


def test_what_was_due_and_never_begun_is_the_queue_and_is_late_when_its_deadline_is_past(clock: Clock) -> None:
    """Twice as many requests as can be served."""
    begins, found = served(clock, schedule(8.0, 0.5, 16, math.inf), [0.25])
    assert begins == [0.25 * i for i in range(8)], "none is begun after the 2 s in which 16 are due"
    assert (found.due, found.done, found.queue) == (16, 8, 8)
    # Request i, done at (i + 1) / 4, was due at i / 8: later than 0.5 s from the third on.  Of those that wait at 2 s,
    # due from 1 s on, those due before 1.5 s are late already.
    assert found.late == 5 + 4
    assert found.latency.max == 2.0 - 7 / 8


def test_the_time_ends_it_also_where_no_request_waits(clock: Clock) -> None:
    _, found = served(clock, schedule(2.0, None, 1000, 3.0), [0.125])
    assert (found.due, found.done, found.queue) == (6, 6, 0)


def test_one_request_is_always_made(clock: Clock) -> None:
    _, found = served(clock, schedule(1e-6, None, 1000, 1e-3), [5.0])
    assert (found.due, found.done, found.late, found.queue) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate=0"], "rate, got 0.0, wanted from 1e-06 to 1e+06 requests a second"),
        (["--rate=-5"], "rate, got -5.0, wanted from"),
        (["--rate=nan"], "rate, got nan, wanted from"),
        (["--rate=inf"], "rate, got inf, wanted from"),
        (["--rate=1e300"], "rate, got 1e+300, wanted from"),
        (["--rate=5", "--deadline=0"], "deadline, got 0.0, wanted more than 0"),
        (["--rate=5", "--deadline=nan"], "deadline, got nan, wanted more than 0"),
        (["--rate=5", "--deadline=inf"], "deadline, got inf, wanted more than 0"),
        (["--deadline=0.5"], "a deadline without a rate, got 0.5 s; give --rate too"),
    ],
)
def test_a_rate_that_none_could_be_is_one_line(bundle_copy: Path, arguments: list[str], words: str) -> None:
    result = mmgen("bench", "b.mmgen", *arguments)
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert words in line
    assert os.listdir() == ["b.mmgen"]


@pytest.fixture(scope="module")
def measured(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a benchmark wrote whose requests were due at 2,000 a second: more than can be served."""
    folder = tmp_path_factory.mktemp("rate")
    files = (f"--output={folder / 'all.json'}", f"--samples={folder / 'samples.jsonl'}", f"--report={folder}")
    result = done("bench", str(bundle_folder), *QUICK, "--rate=2000", "--deadline=0.25", "--runs=400", *files)
    (folder / "out.txt").write_text(result.stdout)
    return folder


def test_latency_in_the_record_is_that_of_the_samples_from_when_they_were_due(measured: Path) -> None:
    (series,) = json.loads((measured / "all.json").read_text())["series"]
    samples = [json.loads(line) for line in (measured / "samples.jsonl").read_text().splitlines()]
    assert {s["due"] for s in samples if s["phase"] != "measured"} == {None}
    of_it = [s for s in samples if s["phase"] == "measured"]
    latencies = [s["began"] + s["total"] - s["due"] for s in of_it]
    found = series["arrivals"]
    assert found["due"] == 400 and found["done"] == len(of_it) and found["due"] - found["done"] == found["queue"]
    assert found["queue"] > 0, "2,000 a second can't be served"
    assert found["latency"]["max"] == pytest.approx(max(latencies))
    assert found["latency"]["mean"] == pytest.approx(sum(latencies) / len(latencies))
    dues = [s["due"] - of_it[0]["due"] for s in of_it]
    assert dues == pytest.approx([number / 2000 for number in range(len(of_it))])
    assert all(s["began"] >= s["due"] for s in of_it)
    assert found["late"] >= sum(latency > 0.25 for latency in latencies)
    assert found["deadline"] == 0.25 and found["rate"] == 2000


def test_text_and_page_say_what_was_due_done_late_and_left(measured: Path) -> None:
    said, page = (measured / "out.txt").read_text(), (measured / "index.html").read_text()
    found = json.loads((measured / "all.json").read_text())["series"][0]["arrivals"]
    counted = f"400 due, {found['done']} done, {found['late']} late, {found['queue']} waiting at the end"
    for words in (f"2000 requests a second: {counted}; late is more than 250 ms after a request was due",
                  "latency from when a request was due, in ms: p50 ", "those that still waited have more"):  # fmt: skip
        assert words in said and words in page
    assert "Distribution of latency" in page
    assert "queue for the same generator, but in the latency" in said


def test_without_a_rate_nothing_is_due(bundle_folder: Path, tmp_path: Path) -> None:
    record = json.loads(done("bench", str(bundle_folder), *QUICK, "--runs=2", "--json").stdout)
    assert record["series"][0]["arrivals"] is None


def test_a_schedule_s_period_is_its_deadline_unless_another_is_given() -> None:
    period = schedule(50.0, None, 10, 20.0)
    assert period.deadline == 0.02
    assert replace(period, deadline=1.0) == schedule(50.0, 1.0, 10, 20.0)
