"""The ``mmgen`` command: what it prints, writes and returns, and how it fails."""

import json
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import done, mmgen
from manifests import edit

from mmgen.runtime import load
from mmgen.runtime.backends.registry import NAMES
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.storage.schema import MANIFEST, Receipt

MMGEN = [sys.executable, "-c", "from mmgen.runtime.cli.main import main; main()"]


@pytest.fixture
def here(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder but for ``b.mmgen``, a link to the bundle."""
    (tmp_path / "b.mmgen").symlink_to(bundle_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def size(png: Path) -> tuple[int, int]:
    """Width and height, from the header of a PNG file."""
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


# What it writes


def test_a_prompt_gives_a_picture_and_says_where(here: Path) -> None:
    result = done("generate", "b.mmgen", "--prompt", "red apple", "-o", "out.png")
    assert result.stdout.splitlines()[0] == "out.png"
    assert size(here / "out.png") == (16, 16)


def test_the_array_is_what_the_library_makes(here: Path) -> None:
    done("generate", "b.mmgen", "--prompt=cat", "--steps=3", "--guidance=3", "--seed=5", "--solver=euler", "--count=2",
         "-o", "out.npy")  # fmt: skip
    with load(here / "b.mmgen") as generator:
        wanted = generator.generate(prompt="cat", steps=3, guidance=3.0, seed=5, solver="euler", count=2)
    assert np.array_equal(np.load(here / "out.npy"), wanted.media)


@pytest.mark.parametrize(
    ("arguments", "columns", "rows"),
    [
        (["--count", "4"], 2, 2),
        (["--count", "8"], 4, 2),
        ([f"--prompt={word}" for word in ("red", "green", "blue")], 3, 1),
        (["--prompt", "red", "--prompt", "blue", "--count", "3"], 3, 2),  # a row a prompt
    ],
)
def test_several_samples_make_a_sheet(here: Path, arguments: list[str], columns: int, rows: int) -> None:
    done("generate", "b.mmgen", *arguments, "-o", "out.png")
    assert size(here / "out.png") == (16 * columns + 4 * (columns - 1), 16 * rows + 4 * (rows - 1))


def test_a_folder_gets_a_file_for_each_sample(here: Path) -> None:
    done("generate", "b.mmgen", "--prompt", "Red Apple!", "--class-id", "3", "--count", "2", "-o", "new/folder/")
    assert sorted(os.listdir(here / "new/folder")) == ["000-red-apple-3.png", "001-red-apple-3.png"]


def test_conditions_have_names_of_their_own_too(here: Path) -> None:
    done("generate", "b.mmgen", "--prompt", "red", "--class-id", "3", "-o", "a.npy")
    done("generate", "b.mmgen", "--condition", "prompt=red", "--condition", "label=3", "-o", "b.npy")
    assert (here / "a.npy").read_bytes() == (here / "b.npy").read_bytes()


def test_options_of_a_solver_are_read_by_their_types(here: Path) -> None:
    arguments = ["--solver=unipc", "--option=solver_order=3", "--option", "solver_type=bh1", "--steps=5",
                 "--option=lower_order_final=false", "--option=disable_corrector=0"]  # fmt: skip
    record = json.loads(done("generate", "b.mmgen", *arguments, "-o", "out.npy", "--json").stdout)
    options = {"solver_order": 3, "solver_type": "bh1", "lower_order_final": False, "disable_corrector": "0"}
    assert record["request"]["options"] == options
    with load(here / "b.mmgen") as generator:
        wanted = generator.generate(steps=5, solver="unipc", options=options)
    assert np.array_equal(np.load(here / "out.npy"), wanted.media)
    record = json.loads(done("generate", "b.mmgen", "--option=eta=1", "-o", "out.png", "--json").stdout)
    assert record["request"]["options"] == {"eta": 1.0}


def test_an_older_file_is_replaced(here: Path) -> None:
    (here / "out.png").write_text("old")
    done("generate", "b.mmgen", "-o", "out.png")
    assert size(here / "out.png") == (16, 16)


def test_json_says_all_and_is_alone_on_stdout(here: Path) -> None:
    result = done("generate", "b.mmgen", "--prompt", "red", "--steps", "2", "-o", "out.png", "--json")
    record = json.loads(result.stdout)
    assert set(record) == {"files", "media", "backend", "request", "delivered", "timings"}
    assert record["files"] == ["out.png"]
    assert record["media"] == {
        "kind": "image", "dtype": "uint8", "shape": [1, 16, 16, 3], "range": [0.0, 255.0], "rate": None,
    }  # fmt: skip
    assert record["request"] == {
        "conditions": {"prompt": ["red"]}, "steps": 2, "guidance": 2.0, "seed": 0, "solver": "ddim",
        "sigmas": "schedule", "count": 1,
    }  # fmt: skip
    times = {"encode", "condition", "timestep", "loop", "steps", "decode", "total", "jitter"}
    assert set(record["timings"]) == times
    assert json.dumps(record["request"]).encode() in (here / "out.png").read_bytes(), "the picture says how it was made"


def test_what_numbers_of_media_mean_is_told_where_the_bundle_knows_it(bundle_copy: Path) -> None:
    def media() -> str:
        return next(line for line in done("inspect", "b.mmgen").stdout.splitlines() if line.startswith("media"))

    assert media().split(None, 1)[1] == "image, uint8 (16, 16, 3), values from 0 to 255, from latents (4, 8, 8)"
    edit(bundle_copy, lambda record: record["media"].update(range=None, rate=24.0))
    assert media().split(None, 1)[1] == "image, uint8 (16, 16, 3), 24 a second, from latents (4, 8, 8)"
    edit(bundle_copy, lambda record: [record["media"].pop(name) for name in ("range", "rate")])
    assert media().split(None, 1)[1] == "image, uint8 (16, 16, 3), from latents (4, 8, 8)", "as an older one may be"


def test_inspect_tells_people_and_machines_what_a_bundle_is(here: Path) -> None:
    text = done("inspect", "b.mmgen").stdout
    for word in ("tiny-text", "prompt: text, 4 tokens", "label: class, 0 to 9", "fp16", "solver ddim", "PSNR in dB",
                 "unipc            solver_order=2 (or 1, 3), solver_type=bh2 (or bh1)"):  # fmt: skip
        assert word in text
    record = json.loads(done("inspect", "b.mmgen", "--json").stdout)
    manifest = json.loads((here / "b.mmgen" / MANIFEST).read_text())
    added = ("bytes", "optimised", "solvers")
    assert record == {**manifest, "engines": [], **{name: record[name] for name in added}}
    assert record["solvers"]["ddim"] == ["eta"] and record["solvers"]["heun"] == []
    assert record["bytes"]["step"] == sum(file.stat().st_size for file in (here / "b.mmgen/graphs").glob("step.onnx*"))


def test_verify_repeats_the_comparisons(here: Path) -> None:
    assert "PSNR" in done("verify", "b.mmgen").stdout
    receipts = json.loads(done("verify", "b.mmgen", "--json").stdout)["receipts"]
    assert {receipt["level"] for receipt in receipts} == {3, 4}
    assert all(receipt["passed"] for receipt in receipts)


def test_verify_shows_what_passed_also_where_something_failed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Receipt(3, "loop", "relative RMS", float("nan"), 0.1, "x")
    good = Receipt(4, "decode", "PSNR", 41.0, 35.0, "media", at_least=True)
    monkeypatch.setattr("mmgen.runtime.verify.repeat", lambda *_, **__: (bad, good))
    text, record = mmgen("verify", "b.mmgen"), mmgen("verify", "b.mmgen", "--json")
    assert text.exit_code == record.exit_code == 1
    assert re.search(r"relative RMS +nan +<= 0.1 +x: FAILED\n.*PSNR in dB +41 +>= 35 +media$", text.stdout, re.M)
    receipts = json.loads(record.stdout)["receipts"]
    assert [(each["measured"], each["passed"]) for each in receipts] == [("nan", False), (41, True)]
    assert text.stderr.endswith("receipt 3 (trajectory) failed: loop, relative RMS of x, got nan, wanted at most 0.1\n")


def test_doctor_names_backends_and_machine() -> None:
    assert re.search(r"^backend ort-cpu +works$", done("doctor").stdout, re.M)
    record = json.loads(done("doctor", "--json").stdout)
    assert {"name": "ort-cpu", "works": True, "reason": None} in record["backends"]
    assert record["packages"]["numpy"] == np.__version__


def test_doctor_says_what_auto_takes_for_a_bundle(here: Path) -> None:
    assert json.loads(done("doctor", "b.mmgen", "--json").stdout)["auto"] in NAMES
    assert mmgen("doctor", "missing.mmgen").exit_code == 1


def test_doctor_says_why_a_backend_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "not here: ONNX Runtime is not installed; pip install" in done("doctor").stdout


# Progress


def test_progress_is_plain_lines_where_nobody_watches(here: Path) -> None:
    result = done("generate", "b.mmgen", "-o", "out.png")
    assert result.stderr.splitlines() == ["loading b.mmgen", "denoising", "decoding"]


def test_progress_is_a_bar_on_a_terminal_and_goes_away(here: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*MMGEN, "generate", "b.mmgen", "-o", "out.png"]
    ran = subprocess.run(command, stderr=theirs, stdout=subprocess.PIPE, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "\r\033[K[####" in shown and shown.endswith("\r\033[K")
    assert ran.stdout.startswith(b"out.png\n")


# Failing: one line, the exit code, and nothing left behind


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mmgen"], "bundle nowhere.mmgen is not there; make one with mmgen-export"),
        (["b.mmgen", "--steps", "0"], "steps, got 0, wanted a whole number, at least 1"),
        (["b.mmgen", "--count", "0"], "count, got 0, wanted a whole number, at least 1"),
        (["b.mmgen", "--seed", "-1"], "seed, got -1"),
        (["b.mmgen", "--solver", "magic"], "solver, got 'magic', wanted 'ddpm' or 'ddim'"),
        (["b.mmgen", "--sigmas", "odd"], "sigmas, got 'odd', wanted"),
        (["b.mmgen", "--option", "eta"], "--option 'eta', wanted NAME=VALUE, such as eta=0.0"),
        (["b.mmgen", "--option", "eta=much"], "option 'eta' of solver 'ddim', got 'much', wanted a number"),
        (["b.mmgen", "--option", "order=2"], "option 'order' of solver 'ddim', wanted 'eta'; leave it out"),
        (["b.mmgen", "--solver=magic", "--option=eta=1"], "solver, got 'magic', wanted 'ddpm' or 'ddim'"),
        (["b.mmgen", "--solver=lms", "--option=order=1.5"], "option 'order' of solver 'lms', got '1.5', wanted 1 or 2"),
        (["b.mmgen", "--backend", "abacus"], "backend, got 'abacus', wanted 'auto' or 'tensorrt' or 'tensorrt-rtx' or"),
        (["b.mmgen", "--threads", "0"], "threads, got 0, wanted a whole number, at least 1"),
        (["b.mmgen", "--guidance", "nan"], "guidance"),
        (["b.mmgen", "--class-id", "10000"], "condition 'label', got 10000, wanted a whole number from 0 to 9"),
        (["b.mmgen", "--condition", "label=x"], "condition 'label', got 'x', wanted a whole number"),
        (["b.mmgen", "--condition", "size=3"], "wanted NAME=VALUE with prompt (text) or label (class)"),
        (["b.mmgen", "--condition", "label"], "wanted NAME=VALUE with prompt (text) or label (class)"),
        (["b.mmgen", "--prompt", "a", "--prompt", "b", *["--class-id=1"] * 3], "conditions of different lengths"),
        (["b.mmgen", "-o", "out.gif"], "output out.gif, wanted NAME.png or NAME.jpg or NAME.webp or"),
        (["b.mmgen", "-o", "nowhere/out.png"], "out.png can't be written (No such file or directory)"),
        (["b.mmgen", "-o", "b.mmgen/bundle.json/out.png"], "out.png can't be written (Not a directory)"),
        (["b.mmgen", "-o", "b.mmgen/bundle.json/"], "b.mmgen/bundle.json can't be made (File exists)"),
    ],
    ids=lambda value: " ".join(value[1:])[-40:] if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line(here: Path, arguments: list[str], words: str) -> None:
    result = mmgen("generate", "-o", "out.png", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    *progress, line = result.stderr.splitlines()
    assert line.startswith("Error: ") and words in line
    assert all(said.startswith("loading") for said in progress)
    assert os.listdir(here) == ["b.mmgen"]


@pytest.mark.parametrize("arguments", ["generate b.mmgen", "generate", "paint", "generate b.mmgen --steps=x"])
def test_wrong_usage_is_2(here: Path, arguments: str) -> None:
    result = mmgen(*arguments.split())
    assert result.exit_code == 2
    assert "Usage: mmgen" in result.stderr
    assert os.listdir(here) == ["b.mmgen"]


DAMAGE = {
    "no manifest": (lambda b: (b / MANIFEST).unlink(), "can't be read"),
    "not JSON": (lambda b: (b / MANIFEST).write_text("{"), "is not JSON"),
    "unknown format": (lambda b: edit(b, lambda r: r.update(format="mmgen/9")), "got 'mmgen/9', wanted 'mmgen/1'"),
    "unknown field": (lambda b: edit(b, lambda r: r.update(colour="red")), "unknown field 'colour'"),
    "missing field": (lambda b: edit(b, lambda r: r.update(axes=None)), "axes"),
    "missing graph": (lambda b: (b / "graphs/decode.onnx").unlink(), "decode.onnx is missing; copy the whole"),
    "truncated graph": (lambda b: os.truncate(b / "graphs/step.onnx", 1000), "graphs/step.onnx: sha256, got"),
    "changed tokenizer": (lambda b: (b / "tokenizer.json").write_text("{}"), "tokenizer.json: sha256, got"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", [["inspect"], ["generate", "-o", "out.png"], ["verify"]], ids=lambda c: c[0])
def test_a_damaged_bundle_is_one_line(bundle_copy: Path, damage: str, command: list[str]) -> None:
    break_it, words = DAMAGE[damage]
    break_it(bundle_copy)
    result = mmgen(*command, "b.mmgen")
    assert result.exit_code == 1
    assert words in result.stderr.splitlines()[-1]
    assert os.listdir(bundle_copy.parent) == ["b.mmgen"]


def test_debug_shows_where(here: Path) -> None:
    result = mmgen("inspect", "nowhere", "--debug")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "Traceback" not in mmgen("inspect", "nowhere").stderr


def test_a_long_prompt_is_cut_with_a_warning(here: Path) -> None:
    result = done("generate", "b.mmgen", "--prompt", "red green blue apple cat", "-o", "out.png")
    assert "Warning: text cut to 4 tokens: 'red green blue apple cat'" in result.stderr


def test_a_device_is_not_replaced_by_a_file(here: Path) -> None:
    (here / "out.npy").symlink_to("/dev/null")
    result = mmgen("generate", "b.mmgen", "-o", "out.npy")
    assert result.exit_code == 1
    assert "/dev/null is there and is not a file" in result.stderr
    assert Path("/dev/null").is_char_device()


def test_a_full_disk_leaves_the_old_file(here: Path) -> None:
    (here / "out.npy").write_text("old")

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    command = [*MMGEN, "generate", "b.mmgen", "-o", "out.npy"]
    ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=small_files_only, check=False)
    assert ran.returncode == 1
    assert "out.npy can't be written (File too large)" in ran.stderr.splitlines()[-1]
    assert (here / "out.npy").read_text() == "old"
    assert sorted(os.listdir(here)) == ["b.mmgen", "out.npy"]


@pytest.mark.parametrize("output", ["out.png", "folder/"])
def test_ctrl_c_is_130_and_leaves_nothing(here: Path, output: str) -> None:
    (here / "out.png").write_text("old")
    command = [*MMGEN, "generate", "b.mmgen", "--steps", "1000", "--count", "256", "-o", output]

    def at_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # programs started in the background ignore it

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=at_a_terminal) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading b.mmgen\n"
        assert process.stderr.readline() == "denoising\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said) == (130, "interrupted\n")
    assert (here / "out.png").read_text() == "old"
    assert sorted(os.listdir(here)) == ["b.mmgen", "out.png"]


# Commands of other packages


def test_export_is_a_command_of_mmgen_that_needs_no_torch_to_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "Turn a trained model into a bundle" in done("--help").stdout
    assert "Usage: mmgen export [OPTIONS] [SOURCE]" in done("export", "--help").stdout


def test_export_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    result = mmgen("export")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: exporting needs torch") and extra("export") in result.stderr
