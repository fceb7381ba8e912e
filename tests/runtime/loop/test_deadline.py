"""Deadlines: as many steps as this device was measured to have time for, and an early end rather than a late one.

Time is simulated: every evaluation and every decoding moves a clock, so that each figure is exact.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.backends.ort.cpu import OrtCpu, OrtRunner
from mmgen.runtime.cli.main import main
from mmgen.runtime.loop.pace import Pace, fitting, round_number
from mmgen.runtime.loop.results import Timings
from mmgen.runtime.request.prepare import Size
from mmgen.runtime.storage.bundle import read_bundle

ROW, ALONE, DECODE = 0.010, 0.006, 0.025  # seconds
ASKED: dict[str, Any] = {"prompt": "red apple", "steps": 50, "guidance": 3.0, "seed": 3}


class Clock:
    """Stands in for ``time.perf_counter``; what runs moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.row, self.alone, self.decode = ROW, ALONE, DECODE
        self.unsteady: Callable[[], float] = lambda: 1.0  # a factor of the next evaluation

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Rows and decodings take simulated time and nothing else does."""
    clock, bind = Clock(), OrtRunner.bind
    monkeypatch.setattr(time, "perf_counter", clock)

    def timed(self: OrtRunner, block: Any, calls: Any) -> Any:
        def moving(call: Any, kind: str) -> Any:
            def run() -> None:
                call()
                clock.now += getattr(clock, kind) * (1.0 if kind == "decode" else clock.unsteady())

            return run

        kinds = []
        for tensors in calls:
            if "guidance" in tensors:
                kinds.append("row" if tensors["guidance"].shape == (2,) else "alone")
            else:
                kinds.append("decode" if "latents" in tensors and "media" in tensors else "now")
        bound = bind(self, block, calls)
        return [c if k == "now" else moving(c, k) for c, k in zip(bound, kinds, strict=True)]

    monkeypatch.setattr(OrtRunner, "bind", timed)
    return clock


@pytest.fixture
def generator(bundle_folder: Path, clock: Clock) -> Iterator[Generator]:
    with Generator(read_bundle(bundle_folder), OrtCpu(onnxruntime, 1)) as opened:
        yield opened


def taken(clock: Clock, generator: Generator, **request: Any) -> tuple[float, Any]:
    """Seconds that a request takes, and its result."""
    begun = clock.now
    result = generator.generate(**ASKED | request)
    return clock.now - begun, result


def test_a_device_that_is_fast_enough_makes_all_steps(generator: Generator, clock: Clock) -> None:
    plain = generator.generate(**ASKED)
    seconds, result = taken(clock, generator, deadline=1.0)
    assert seconds <= 1.0
    assert result.complete and (result.steps, result.evaluations_run) == (50, 50)
    assert np.array_equal(result.latents, plain.latents)


@pytest.mark.parametrize("deadline", [0.04, 0.06, 0.1, 0.2, 0.3, 0.45, 0.52])
def test_as_many_steps_as_fit_are_made_and_end_well(generator: Generator, clock: Clock, deadline: float) -> None:
    """The result is that of so many steps, not a longer run cut off; at least four fifths of the time is used."""
    generator.generate(**ASKED)  # measures
    seconds, result = taken(clock, generator, deadline=deadline)
    assert seconds <= deadline
    assert result.steps == round_number(int((deadline - DECODE) / ROW + 1e-9))
    assert result.evaluations_run == result.evaluations == result.steps
    assert seconds - DECODE >= 0.8 * (deadline - DECODE) - ROW
    assert (result.steps_asked, result.complete) == (50, False)
    assert np.array_equal(result.latents, generator.generate(**ASKED | {"steps": result.steps}).latents)


def test_the_first_request_of_a_size_measures_in_its_own_time(generator: Generator, clock: Clock) -> None:
    """Two evaluations and two decodings are for measuring."""
    seconds, result = taken(clock, generator, deadline=0.2)
    assert seconds <= 0.2
    assert result.evaluations_run == round_number(int((0.2 - 3 * DECODE - 2 * ROW) / ROW + 1e-9))
    seconds, result = taken(clock, generator, deadline=0.2)
    assert result.evaluations_run == 16, "measured once"
    more = generator.generate(**ASKED, count=2, deadline=0.2)
    assert more.evaluations_run < 16, "another size"


def test_a_load_that_comes_within_a_request_is_reckoned_with_at_once(generator: Generator, clock: Clock) -> None:
    """What decodes afterwards will be as slow as evaluations are now, whatever was usual before."""
    for _ in range(6):
        generator.generate(**ASKED)  # 300 evaluations that were fast
    rows = iter([1.0] * 6)
    clock.unsteady = lambda: next(rows, 4.0)
    clock.decode = 4 * DECODE
    seconds, result = taken(clock, generator, deadline=0.3)
    assert seconds <= 0.3 + ROW, "one evaluation that was slow before it was known"
    assert 6 <= result.evaluations_run < result.evaluations and not result.complete


def test_a_device_that_slows_down_ends_early_with_what_it_believes(generator: Generator, clock: Clock) -> None:
    generator.generate(**ASKED)
    believed = [p.preview() for p in generator.stream(**ASKED | {"steps": 16})]
    clock.row = 3 * ROW
    seconds, result = taken(clock, generator, deadline=0.2)
    assert seconds <= 0.2 + clock.row, "over by no more than a step"
    assert result.steps == 16 and 4 <= result.evaluations_run < 16 and not result.complete
    assert np.array_equal(result.media, believed[result.evaluations_run - 1])
    assert np.array_equal(generator.decode(result.latents)[0], result.media)


@pytest.mark.parametrize("seed", range(20))
def test_no_request_is_over_by_more_than_a_step_however_unsteady_the_device(
    generator: Generator, clock: Clock, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    clock.unsteady = lambda: float(rng.lognormal(0, 0.6))
    generator.generate(**ASKED)
    for _ in range(5):
        deadline = rng.uniform(0.05, 0.4)
        seconds, result = taken(clock, generator, deadline=deadline)
        assert seconds <= deadline + max(result.timings.steps)


def test_no_time_at_all_is_one_row(generator: Generator, clock: Clock) -> None:
    for _ in range(2):
        _, result = taken(clock, generator, deadline=1e-9)
        assert (result.steps, result.evaluations_run) == (1, 1)
    assert np.isfinite(result.latents).all()


def test_rows_without_guidance_are_reckoned_with_as_they_are(generator: Generator, clock: Clock) -> None:
    """Half of the evaluations outside the interval leave time for more."""
    interval = {"guidance_interval": (0.0, 1.0)}
    generator.generate(**ASKED | interval)
    seconds, result = taken(clock, generator, deadline=0.2, **interval)
    assert seconds <= 0.2
    assert result.evaluations_run == result.evaluations > 16, "what there is time for if all are guided"
    counted = sorted(round(s, 6) for s in result.timings.steps)
    assert counted[0] == ALONE and counted[-1] == ROW


def test_two_rows_a_step_are_half_the_steps(generator: Generator, clock: Clock) -> None:
    generator.generate(**ASKED)
    seconds, result = taken(clock, generator, deadline=0.2, solver="heun")
    assert seconds <= 0.2
    assert result.steps == 8 and result.evaluations == result.evaluations_run == 15


def test_strength_leaves_its_share_of_fewer_steps(generator: Generator, clock: Clock) -> None:
    given: dict[str, Any] = {"latents": np.ones((1, 4, 8, 8), np.float32), "strength": 0.3}
    generator.generate(**ASKED | given)
    seconds, result = taken(clock, generator, deadline=0.1, **given)
    assert seconds <= 0.1 and result.complete is False
    assert result.evaluations == result.evaluations_run == int(result.steps * 0.3) == 7
    _, least = taken(clock, generator, deadline=1e-9, **given)
    assert (least.steps, least.evaluations) == (4, 1)


def test_a_stream_ends_early_too_and_says_which_row_is_the_last(generator: Generator, clock: Clock) -> None:
    generator.generate(**ASKED)
    begun = clock.now
    for progress in generator.stream(**ASKED, deadline=0.2):
        clock.now += 0.02  # somebody looks at it
        if progress.last:
            result = progress.result()
    assert progress.last and progress.evaluation == result.evaluations_run < progress.evaluations == 16
    assert clock.now - begun <= 0.2 + 2 * 0.02, "over by the time that was taken to look at the last two evaluations"


def test_other_requests_between_its_rows_take_of_a_streams_time_and_not_of_its_pace(
    generator: Generator, clock: Clock
) -> None:
    """Two evaluations and a decoding of another request each time: a stream goes on no longer than its time allows."""
    generator.generate(**ASKED)
    other, begun = 2 * ROW + DECODE, clock.now
    for progress in generator.stream(**ASKED, deadline=0.3):
        generator.generate(**ASKED | {"steps": 2})
        if progress.last:
            result = progress.result()
    assert 3 <= result.evaluations_run == progress.evaluation < progress.evaluations
    assert clock.now - begun <= 0.3 + 2 * other
    (pace,) = generator._opened["image"].session._paces.values()
    np.testing.assert_allclose(pace.guided, ROW)
    np.testing.assert_allclose(result.timings.steps, ROW)


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan"), "1", True])
def test_a_bad_deadline_is_one_clear_line(generator: Generator, deadline: Any) -> None:
    with pytest.raises(MmgenError, match=r"deadline, got .*, wanted seconds, more than 0"):
        generator.generate(**ASKED, deadline=deadline)


def test_the_command_line_says_what_was_delivered(bundle_folder: Path, tmp_path: Path) -> None:
    asked = ["generate", str(bundle_folder), "--deadline=0.000001", "--steps=50", "-o", str(tmp_path / "out.png")]
    said = CliRunner().invoke(main, asked).stdout
    assert "the deadline left time for 1 steps of the 50 asked for, 1 of 1 evaluations run" in said
    record = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)
    delivered = {"steps_asked": 50, "steps": 1, "evaluations": 1, "evaluations_run": 1, "complete": False}
    assert record["delivered"] == delivered
    assert record["timings"]["jitter"] == 0


def test_a_real_deadline_is_kept(bundle_folder: Path) -> None:
    """On this machine's own clock, which other programs disturb: the best of several is looked at."""

    def late(generator: Generator, deadline: float) -> float:
        begun = time.perf_counter()
        result = generator.generate(**ASKED | {"steps": 1000}, deadline=deadline)
        assert result.evaluations_run < 1000
        return time.perf_counter() - begun - deadline

    with load(bundle_folder, "ort-cpu", threads=1) as generator:
        generator.generate(**ASKED, deadline=10)
        for deadline in (0.005, 0.01, 0.02):
            assert min(late(generator, deadline) for _ in range(8)) < 0.05


def test_jitter_is_how_much_the_slowest_row_is_slower() -> None:
    assert Timings(steps=[0.010, 0.012, 0.010, 0.015]).jitter == pytest.approx(0.004)
    assert Timings(loop=1.0).jitter is None, "evaluations of a recorded loop aren't timed"


def test_round_numbers_are_few_and_near() -> None:
    rounds = [round_number(n) for n in range(1, 1001)]
    assert all(n * 0.8 <= r <= n for n, r in enumerate(rounds, 1))
    assert len(set(rounds)) < 40


def test_a_pace_is_cautious_and_forgets() -> None:
    pace = Pace(guides=2)
    assert not pace.known
    for seconds in [9.0] * 10 + [1.0] * 1000:
        pace.add_evaluation(False, seconds)
    pace.decode.append(2.0)
    assert pace.known
    assert pace.evaluation(False) == 1.0, "long ago doesn't count"
    assert pace.evaluation(True) == 1.0, "a branch alone takes no longer"
    for _ in range(3):
        pace.add_evaluation(False, 5.0)
    assert pace.evaluation(False) == 1.0, "what happens every eightieth time is made up for by the other evaluations"
    assert pace.end(False) == 5.0 + 2.0, "but for the last"
    assert pace.need([False] * 10) == 9 * 1.0 + 5.0 + 2.0
    for _ in range(30):
        pace.add_evaluation(False, 3.0)
    assert pace.evaluation(False) == 3.0, "what happens every eighth time is reckoned with"
    alone = Pace(guides=3)
    alone.add_evaluation(True, 1.0)
    assert alone.evaluation(False) == 3.0


def test_the_least_is_made_where_nothing_fits() -> None:
    pace = Pace(guides=1)
    pace.add_evaluation(False, 1.0)
    pace.decode.append(1.0)

    def in_steps(steps: int) -> Any:
        return SimpleNamespace(steps=steps, size=Size(1, 1, (False,) * steps, (False,) * steps))

    assert fitting(pace, in_steps, 50, 3, 0.5).steps == 3
    assert fitting(pace, in_steps, 50, 3, 8.0).steps == 7
    assert fitting(pace, in_steps, 5, 1, 8.0).steps == 5
