"""``mmgen bench``: figures as numpy and scipy have them, how far to trust them, and nothing lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import done, mmgen

from mmgen.runtime import MmgenError, Request, load
from mmgen.runtime.bench.cold_start import cold_start
from mmgen.runtime.bench.figures import median_interval, noise, ratio, summary
from mmgen.runtime.bench.text import milli, noise_text
from mmgen.runtime.bench.usage import peak_memory, watched
from mmgen.runtime.cli.main import main
from mmgen.runtime.loop.plan import Plan
from mmgen.runtime.request.example import example_conditions
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import MANIFEST

QUICK = ("--backend=ort-cpu", "--runs=14", "--warmup=1", "--starts=1", "--steps=3", "--threads=1")
PARTS = {"total", "condition", "timestep", "loop", "evaluation", "jitter", "decode", "host"}


# Figures


def test_figures_are_numpy_s() -> None:
    values = np.random.default_rng(0).lognormal(size=57)
    found = summary(values.tolist())
    assert (found.p50, found.p90, found.p99) == tuple(np.percentile(values, (50, 90, 99)))
    assert (found.min, found.max, found.mean) == (values.min(), values.max(), values.mean())
    assert found.deviation == np.std(values, ddof=1)
    alone = summary([2.0])
    assert (alone.p50, alone.p99, alone.deviation, alone.p50_interval) == (2.0, 2.0, 0.0, None)


@pytest.mark.parametrize("count", [5, 6, 7, 20, 100, 501])
def test_the_median_s_interval_has_the_binomial_s_ranks(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rank = int(stats.binom.ppf(0.025, count, 0.5))  # the first below which there is more than 2.5 %
    wanted = None if rank == 0 else (float(rank - 1), float(count - rank))
    assert median_interval(np.arange(count, dtype=np.float64)[::-1]) == wanted


def test_the_interval_of_a_ratio_is_scipy_s_bootstrap() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    first, second = draw.normal(10, 1, 80), draw.normal(11, 1, 80)
    found = ratio(first.tolist(), second.tolist())
    theirs = stats.bootstrap(
        (first, second), lambda a, b, axis: np.median(b, axis) / np.median(a, axis), n_resamples=4000,
        vectorized=True, method="percentile", random_state=2,
    ).confidence_interval  # fmt: skip
    assert found.ratio == np.median(second) / np.median(first)
    assert found.low < 1.1 < found.high
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)  # 0.003: two sets of draws


# The noise floor


def test_a_steady_machine_can_tell_small_differences() -> None:
    steady = np.random.default_rng(0).normal(1, 0.004, 100).tolist()
    found = noise(steady)
    assert found is not None and not found.noisy
    assert found.floor < 0.01
    assert noise_text(found, 100).startswith(f"noise floor: a difference below {found.floor:.1%} means nothing here")


def test_bursts_of_other_work_raise_the_floor_though_both_halves_meet_them() -> None:
    draw = np.random.default_rng(0)
    busy = draw.normal(1, 0.004, 100) * np.where(draw.random(100) < 0.45, 1.6, 1)
    found = noise(busy.tolist())
    assert found is not None and found.noisy
    assert noise_text(found, 100).startswith("TOO NOISY: a difference below")


def test_a_machine_that_gets_slower_shows_in_the_drift_alone() -> None:
    warming = np.random.default_rng(0).normal(1, 0.002, 100) * np.linspace(1, 1.2, 100)
    found = noise(warming.tolist())
    assert found is not None and found.noisy
    assert found.halves.ratio == pytest.approx(1, abs=0.01)
    assert found.drift.ratio == pytest.approx(1.15 / 1.05, abs=0.01)
    assert found.floor >= found.drift.ratio - 1


def test_two_series_that_differ_are_further_apart_than_either_s_floor() -> None:
    draw = np.random.default_rng(3)
    both = np.empty(200)  # interleaved, as two programs measured in turn
    both[::2], both[1::2] = draw.normal(1, 0.01, 100), draw.normal(1.03, 0.01, 100)
    apart = ratio(both[::2].tolist(), both[1::2].tolist())
    floors = [found.floor for half in (both[::2], both[1::2]) if (found := noise(half.tolist()))]
    assert len(floors) == 2 and apart.ratio - 1 > max(floors)
    assert apart.low > 1


def test_too_few_requests_have_no_floor() -> None:
    assert noise([1.0] * 11) is None
    assert "11 requests are too few, at least 12" in noise_text(None, 11)


BURN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="what other programs take is read from /proc/stat")
def test_what_a_busy_second_core_takes_is_seen() -> None:
    with watched() as used:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", BURN], check=True)
        seconds = time.perf_counter() - began
    assert used.others is not None
    assert used.others * seconds >= 0.25  # of its 0.3 s; /proc/stat counts in hundredths
    assert used.own * seconds < 0.1


def test_memory_that_was_held_once_stays_the_peak() -> None:
    before = peak_memory()
    block = np.ones(before + 2**24, np.uint8)
    del block
    assert peak_memory() >= before + 2**24


# The command


@pytest.fixture(scope="module")
def measured(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one benchmark wrote."""
    folder = tmp_path_factory.mktemp("bench")
    files = (f"--output={folder / 'all.json'}", f"--samples={folder / 'samples.jsonl'}")
    result = done("bench", str(bundle_folder), *QUICK, "--batch=1", "--batch=3", "--batch=1", *files)
    (folder / "out.txt").write_text(result.stdout)
    return folder


def test_a_bundle_is_measured_without_being_told_what_to_ask(measured: Path) -> None:
    said = (measured / "out.txt").read_text()
    for words in ("end to end", "an evaluation", "noise", "batch 1, threads 1: 14 requests of 3 evaluations", "batch 3",
                  "samples a second", "until the first media", "included", "not included", "sha256"):  # fmt: skip
        assert words in said


def test_the_record_says_what_was_measured_and_where(measured: Path, bundle_folder: Path) -> None:
    record = json.loads((measured / "all.json").read_text())
    context = record["context"]
    assert context["sha256"] == sha256(bundle_folder / MANIFEST)
    assert context["backend"] == "ort-cpu"
    assert {"mmgen", "numpy", "onnxruntime", "python"} <= set(context["versions"])
    assert context["request"]["steps"] == 3 and context["request"]["solver"] == "ddim"
    assert context["machine"]["cores"] >= 1 and "gpu_clock" in context["after"]
    assert [series["batch"] for series in record["series"]] == [1, 3]
    for series in record["series"]:
        assert set(series["parts"]) == PARTS
        assert series["parts"]["evaluation"]["count"] == 3 * series["parts"]["total"]["count"]
    (start,) = record["starts"]
    assert start["total"] == pytest.approx(start["process"] + start["load"] + start["first"])
    assert start["peak_memory"] > 2**24


def test_json_on_stdout_is_what_output_writes(bundle_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    printed = done("bench", str(bundle_folder), *QUICK, "--runs=2", "--starts=0", "--json", "-o", str(file)).stdout
    assert json.loads(printed) == json.loads(file.read_text())
    assert json.loads(printed)["series"][0]["gpu"] == {}, "there is no GPU's time without one"


def test_a_request_is_asked_as_generate_asks_it(bundle_folder: Path) -> None:
    asked = ("--seed=7", "--solver=euler", "--sigmas=karras", "--guidance=3", "--guidance-interval", "0.2", "inf")
    record = json.loads(done("bench", str(bundle_folder), *QUICK, "--runs=2", *asked, "--json").stdout)
    request = record["context"]["request"]
    assert {name: request[name] for name in ("seed", "solver", "sigmas", "guidance", "guidance_interval")} == {
        "seed": 7, "solver": "euler", "sigmas": "karras", "guidance": 3.0, "guidance_interval": [0.2, "inf"],
    }  # fmt: skip
    (series,) = record["series"]
    assert "step" not in {point["graph"] for point in series["roofline"]}, "evaluations differ in their branches"
    said = done("bench", str(bundle_folder), *QUICK, "--runs=2", "--starts=0", *asked).stdout
    assert "guidance 3, from 0.2 to inf of noise to data, sigmas karras, seed 7" in said


def test_options_that_both_have_are_the_same_in_bench_and_generate() -> None:
    ours, theirs = ({o.name: o.to_info_dict() for o in main.commands[name].params} for name in ("bench", "generate"))
    for name in ("prompts", "class_ids", "others", "steps", "guidance", "guidance_interval", "seed", "solver", "sigmas",
                 "backend", "as_json"):  # fmt: skip
        assert ours[name] == theirs[name]


def test_every_request_is_kept_and_its_parts_are_its_total(measured: Path) -> None:
    samples = [json.loads(line) for line in (measured / "samples.jsonl").read_text().splitlines()]
    record = json.loads((measured / "all.json").read_text())
    for series in record["series"]:
        of_it = [s for s in samples if s["batch"] == series["batch"] and s["phase"] == "measured"]
        assert len(of_it) == 14
        assert series["parts"]["total"] == json.loads(json.dumps(vars(summary([s["total"] for s in of_it]))))
        assert series["throughput"] == pytest.approx(series["batch"] * 14 / sum(s["total"] for s in of_it))
    assert sum(s["phase"] == "warm-up" for s in samples) == 2
    for s in samples:
        parts = s["condition"] + s["timestep"] + s["loop"] + s["decode"] + s["host"]
        assert s["total"] == pytest.approx(parts)
        assert s["loop"] == pytest.approx(sum(s["steps"])) and len(s["steps"]) == 3
        assert s["host"] > 0 and s["timestep"] > 0, "what the last request left there is computed again"


def test_what_the_last_request_left_can_be_used(bundle_folder: Path, tmp_path: Path) -> None:
    done("bench", str(bundle_folder), *QUICK, "--new=nothing", "--starts=0", "--samples", str(tmp_path / "s.jsonl"))
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert all(s["timestep"] == 0 for s in samples if s["phase"] == "measured")


def test_rows_of_a_loop_that_runs_as_one_are_timed_in_requests_of_their_own(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "loop", lambda self: lambda: [step() for step in self.steps])  # as a CUDA graph
    record, samples = tmp_path / "r.json", tmp_path / "s.jsonl"
    done("bench", str(bundle_folder), *QUICK, "--starts=0", f"--output={record}", f"--samples={samples}")
    (series,) = json.loads(record.read_text())["series"]
    phases = [(s["phase"], len(s["steps"]), s["jitter"]) for s in map(json.loads, samples.read_text().splitlines())]
    assert phases.count(("measured", 0, None)) == series["parts"]["total"]["count"] == 14
    assert [phase for phase, rows, _ in phases if rows] == ["by evaluation"] * 10
    assert series["evaluations"] == 3 and series["parts"]["evaluation"]["count"] == 30
    assert series["median"]["phase"] == "by evaluation" and len(series["median"]["steps"]) == 3


def test_time_that_is_up_ends_it(bundle_folder: Path) -> None:
    result = done("bench", str(bundle_folder), "--seconds=0.000001", "--starts=0", "--threads=1")
    assert ": 1 requests of" in result.stdout
    assert "noise floor unknown: 1 requests are too few" in result.stdout


@pytest.mark.parametrize("more", [[], ["--rate=20"]], ids=["one after the other", "at a rate"])
def test_ctrl_c_keeps_the_samples_and_leaves_no_half_a_record(bundle_copy: Path, more: list[str]) -> None:
    Path("old.json").write_text("old")
    code = "from mmgen.runtime.cli.main import main; main()"
    arguments = ["bench", "b.mmgen", "--runs=1000000", "--seconds=600", "--samples=s.jsonl", "--output=old.json", *more]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("measuring"):
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.splitlines() == ["interrupted"]
    samples = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert {s["phase"] for s in samples} == {"warm-up", "measured"}
    assert Path("old.json").read_text() == "old"
    assert sorted(os.listdir()) == ["b.mmgen", "old.json", "s.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mmgen"], "bundle nowhere.mmgen is not there"),
        (["b.mmgen", "--runs=0"], "runs, got 0, wanted a whole number, at least 1"),
        (["b.mmgen", "--batch=0"], "batch, got 0, wanted a whole number, at least 1"),
        (["b.mmgen", "--threads=0"], "threads, got 0, wanted a whole number, at least 1"),
        (["b.mmgen", "--seconds=0"], "seconds, got 0.0, wanted more than 0"),
        (["b.mmgen", "--steps=0"], "steps, got 0"),
        (["b.mmgen", "--solver=magic"], "solver, got 'magic'"),
        (["b.mmgen", "--sigmas=magic"], "sigmas, got 'magic'"),
        (["b.mmgen", "--seed=-1"], "seed, got -1"),
        (["b.mmgen", "--guidance-interval", "5", "1"], "guidance_interval, got (5.0, 1.0)"),
        (["b.mmgen", "--backend=abacus"], "backend, got 'abacus'"),
        (["b.mmgen", "--output=nowhere/all.json"], "all.json can't be written"),
        (["b.mmgen", "--samples=nowhere/s.jsonl"], "s.jsonl can't be written"),
    ],
)
def test_what_is_wrong_is_one_line(bundle_copy: Path, arguments: list[str], words: str) -> None:
    result = mmgen("bench", *arguments)
    assert result.exit_code == 1 and result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and words in line
    assert os.listdir() == ["b.mmgen"]


def test_a_fresh_process_that_fails_says_why(bundle_copy: Path) -> None:
    with pytest.raises(MmgenError, match=r"a fresh process that makes one request failed .*steps, got 0"):
        cold_start(bundle_copy, "ort-cpu", 1, Request(steps=0))


def test_conditions_that_are_not_given_are_the_golden_ones(bundle_folder: Path) -> None:
    bundle = read_bundle(bundle_folder)
    golden = example_conditions(bundle, {})
    assert set(golden) == {"prompt", "label"}
    assert example_conditions(bundle, {"prompt": ["red"]}) == {"prompt": ["red"]}


def test_forgetting_runs_the_graphs_again_with_the_same_result(bundle_folder: Path) -> None:
    with load(bundle_folder) as generator:
        first = generator.generate(prompt="red", steps=2)
        again = generator.generate(prompt="red", steps=2)
        generator.forget("condition", "timestep")
        anew = generator.generate(prompt="red", steps=2)
    assert (again.timings.timestep, anew.timings.timestep > 0) == (0, True)
    assert np.array_equal(first.latents, anew.latents) and np.array_equal(first.latents, again.latents)


def test_times_have_three_digits() -> None:
    assert [milli(s) for s in (1.23456, 0.0123456, 0.00123456, 0.000123456)] == ["1235", "12.3", "1.23", "0.123"]


def test_other_commands_do_not_load_what_measures() -> None:
    code = "import sys, mmgen.runtime.cli.main; print([m for m in sys.modules if m.startswith('mmgen.runtime.bench')])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
