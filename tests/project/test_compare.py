"""benchmarks/compare.py with fakes that need no torch: turns, arithmetic, peers that fail."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
from tree import ROOT

sys.path.append(str(ROOT / "benchmarks"))  # its files stand beside each other, and import each other so
import compare
import compare_report as told
from compare import Failed, Worker
from compare_models import MODELS, PEERS, request, rows, sessions

FAKE = """
import json, sys, time
import numpy as np
name, how, diary = sys.argv[1:]
if how == "broken":
    print(json.dumps({"error": "ImportError: no such library"}), flush=True)
    raise SystemExit(1)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if how == "crashes" and asked["request"] == 3:
        raise SystemExit(7)
    if how == "hangs":
        time.sleep(60)
    begun = time.perf_counter()
    time.sleep(0.002)
    with open(diary, "a") as file:
        print(name, asked["request"], begun, time.perf_counter(), file=file)
    if "save" in asked:
        np.savez(asked["save"], media=np.zeros((1, 2, 2, 3), np.uint8), latents=np.full((1, 4), float(len(name))))
    print(json.dumps({"seconds": 2.0, "steps": [0.5, 0.7], "decode": 0.4, "cpu": 0.0, "peak": 5}), flush=True)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., Any]:
    """What starts a worker that behaves as it is told."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def starting(name: str, how: str = "well") -> Callable[[], Worker]:
        command = [sys.executable, script, name, how, tmp_path / "diary"]
        return lambda: Worker(command, tmp_path / f"{name}.log", {})

    return starting


def play(starts: dict[str, Any], rounds: int, scratch: Path, first: int = 1) -> dict[str, Any]:
    with ExitStack() as stack:
        return compare.play(starts, rounds, stack, scratch, first, pause=0)


def record(**seconds: list[float]) -> dict[str, Any]:
    """A model's results: seconds of every round, by peer."""
    peers = {
        name.replace("_", "-"): {
            "load": 1.0, "first": 2.0, "peak": 10**9, "agreement": {"latents": 0.0, "psnr": 100.0},
            "samples": [
                {"round": i, "seconds": s, "steps": [s / 4, s / 2, s / 8], "decode": s / 10, "cpu": s}
                for i, s in enumerate(series, 1)
            ],
        }
        for name, series in seconds.items()
    }  # fmt: skip
    return {
        "title": "a model", "steps": 3, "guidance": 4.0, "threads": 2, "date": "2026-01-01T00:00:00",
        "commit": "abc", "machine": {"cpu": "a processor"}, "peers": peers, "failed": {},
        "rounds": max(map(len, seconds.values()), default=0),
    }  # fmt: skip


def test_peers_are_asked_one_at_a_time_and_in_another_order_each_round(fake: Any, tmp_path: Path) -> None:
    found = play({name: fake(name) for name in ("torch", "b", "c", "d")}, 5, tmp_path)
    diary = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    spans = [(float(begun), float(ended)) for _, _, begun, ended in diary]
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    asked = [(name, int(number)) for name, number, *_ in diary][4:]  # without those at the start
    turns = [[name for name, number in asked if number == turn] for turn in range(6)]
    assert all(sorted(turn) == ["b", "c", "d", "torch"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 2
    assert found["rounds"] == 5
    assert all(len(peer["samples"]) == 5 and peer["peak"] == 5 for peer in found["peers"].values())


def test_what_peers_made_of_one_noise_is_compared_with_torch(fake: Any, tmp_path: Path) -> None:
    found = play({"torch": fake("torch"), "fourfour": fake("fourfour")}, 1, tmp_path)["peers"]
    assert found["torch"]["agreement"] == {"latents": 0.0, "psnr": 100.0}
    assert found["fourfour"]["agreement"]["latents"] == pytest.approx(3 / 5)


def test_a_peer_that_fails_is_named_and_the_others_go_on(fake: Any, tmp_path: Path) -> None:
    starts = {"torch": fake("torch"), "b": fake("b", "broken"), "c": fake("c", "crashes")}
    found = play(starts, 4, tmp_path)
    assert found["failed"] == {"b": "ImportError: no such library", "c": "it ended with code 7; see c.log"}
    assert list(found["peers"]) == ["torch"]
    assert len(found["peers"]["torch"]["samples"]) == 4


def test_a_peer_that_hangs_is_given_up(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "PATIENCE", 0.5)
    with closing(fake("b", "hangs")()) as worker, pytest.raises(Failed, match="no answer"):
        worker.ask()
        worker.ask({"request": 0})


def test_interrupting_keeps_the_rounds_that_are_complete(tmp_path: Path) -> None:
    class Interrupted:
        def close(self) -> None: ...

        def ask(self, message: dict[str, Any] | None = None) -> dict[str, Any]:
            if message and message["request"] == 4:
                raise KeyboardInterrupt
            return {"seconds": 1.0, "steps": [1.0], "decode": 0.0, "cpu": 0.0, "peak": 1}

    found = play({"torch": Interrupted, "b": Interrupted}, 9, tmp_path)
    assert found["interrupted"]
    assert found["rounds"] == 3
    assert [len(peer["samples"]) for peer in found["peers"].values()] == [3, 3]


def test_ratios_are_of_the_rounds_and_of_the_fastest_backend_in_the_same_precision() -> None:
    slow = [2.0, 20.0, 2.0, 2.0]  # something else ran in the second round
    found = record(mmgen_openvino=[1.0, 10.0, 1.0, 1.0], mmgen_ort_cpu=[3.0] * 4, mmgen_openvino_bf16=[0.5] * 4,
                   torch=slow, torch_bf16=[1.5] * 4)  # fmt: skip
    assert told.fastest(found) == "mmgen-openvino-bf16"
    assert told.fastest(found, precisions=("f32",)) == "mmgen-openvino"
    assert told.ratio(found, "torch", "mmgen-openvino").value == 2.0
    assert told.times(found, "torch-bf16", "step") == dict.fromkeys((1, 2, 3, 4), 0.375)  # the median step of each
    table = told.summary_table({"dit-s": found})
    assert "| torch, f32 | **2.00×** 2 s |" in table
    assert "| torch-bf16, bf16 | **3.00×** 1.5 s |" in table
    assert table in told.summary({"dit-s": found}, "plot.svg")


def test_peers_of_two_sessions_meet_in_the_reference_alone(fake: Any, tmp_path: Path) -> None:
    peers = [PEERS[name] for name in ("torch", "torch-bf16", "mmgen-openvino", "mmgen-openvino-bf16")]
    found: dict[str, Any] = {"peers": {}, "failed": {}, "rounds": 0}
    for number, session in enumerate(sessions(MODELS["action"], peers)):
        starts = {peer.name: fake(peer.name) for peer in session}
        assert len(starts) == 2 + number
        compare.merge(found, play(starts, 3, tmp_path, 1 + 3 * number))
    assert list(told.times(found, "torch")) == [1, 2, 3, 4, 5, 6]
    assert list(told.times(found, "mmgen-openvino-bf16")) == [4, 5, 6]
    assert told.ratio(found, "torch", "mmgen-openvino-bf16").value == 1.0


def test_noise_is_even_rounds_against_odd_ones() -> None:
    typical, worst = told.noise(record(torch=[1.0, 1.0, 1.0, 1.0], b=[1.0, 1.1, 1.0, 1.1], c=[2.0] * 4))
    assert typical == 0
    assert worst == pytest.approx(0.1)
    assert told.noise(record(torch=[1.0] * 3)) is None


def test_targets_are_said_to_be_met_or_not() -> None:
    ours = {"mmgen_openvino": [1.2] * 6, "mmgen_openvino_bf16": [1.0] * 6}
    found = record(torch=[4.2] * 6, torch_bf16=[1.6] * 6, **ours)
    found["peers"]["torch-bf16"]["samples"][0]["decode"] = 0.16
    lines = [str(target) for target in told.targets({"dit-s": found})]
    assert lines[0].startswith("- met: DiT-S/2 + vq-f8, a request of mmgen-openvino-bf16 against torch: 4.20×")
    assert lines[1].startswith("- **not met**") and "torch-bf16" in lines[1]
    assert lines[2].startswith("- not measured") and "openvino-loop-bf16" in lines[2]
    assert "decoding of mmgen-openvino-bf16 against torch-bf16: 1.60×" in lines[3]


def test_a_fast_peer_with_another_answer_shows() -> None:
    found = record(torch=[2.0] * 4, torch_bf16=[0.1] * 4, mmgen_openvino=[1.0] * 4, mmgen_openvino_bf16=[0.5] * 4)
    found["peers"]["torch-bf16"]["agreement"] = {"latents": 0.3, "psnr": 12.0}
    assert "| torch-bf16, bf16 | **0.20×** 0.1 s (30 %, 12 dB) |" in told.summary_table({"dit-s": found})
    assert "30 %, 12 dB **far**" in told.report({"dit-s": found})


def test_results_of_other_models_stay(tmp_path: Path) -> None:
    path = tmp_path / "results" / "compare.json"
    compare.keep(path, "emoji", record(torch=[1.0]))
    compare.keep(path, "dit-s", record(torch=[2.0]))
    compare.keep(path, "emoji", record())  # nothing was measured
    known = json.loads(path.read_text())
    assert [told.usual(known[name], "torch") for name in ("emoji", "dit-s")] == [1.0, 2.0]
    assert '"steps": [ 0.25, 0.5, 0.125 ]' in path.read_text()  # samples are a line each, not a page
    compare.write(path)
    assert "a model" in path.with_suffix(".md").read_text()
    assert fromstring(path.with_suffix(".svg").read_bytes()).tag.endswith("svg")


def test_the_table_takes_the_place_between_the_marks() -> None:
    text = f"before\n{told.BEGIN}\nold\n{told.END}\nafter"
    assert told.marked(text, "new") == text.replace("old", "new")
    assert told.marked("no marks", "new") is None
    assert told.marked((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8"), "new")


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.kind != "tokens"])
def test_every_peer_is_asked_the_same(name: str) -> None:
    model = MODELS[name]
    one, again, other = request(model, 3), request(model, 3), request(model, 4)
    assert np.array_equal(one.noise, again.noise) and not np.array_equal(one.noise, other.noise)
    assert len(rows(model)) == model.steps
    assert {peer.precision for peer in PEERS.values() if peer.ours} == {"f32", "bf16"}


def test_the_parent_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = sys.modules['diffusers'] = None; import compare"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "benchmarks")
