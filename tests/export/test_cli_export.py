"""The ``mmgen-export`` command: names, results, and failing without a trace."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_text import LENGTH, tiny_text_model
from tree import TESTS

from mmgen.engines.targets import Possible
from mmgen.export.base import embedded
from mmgen.export.base.model import Model
from mmgen.export.cli import main
from mmgen.runtime import load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import MANIFEST, Bundle

TINY = f"{TESTS / 'models' / 'tiny_text.py'}:tiny_text_model"
EXPORT = [sys.executable, "-c", "from mmgen.export.cli import main; main()"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_bundle_is_named_after_its_model_and_described_on_stdout(here: Path) -> None:
    result = export(TINY, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["bundle"] == "tiny-text.mmgen"
    assert record["precision"]["policy"] == "fp32"
    assert [c["length"] for c in record["conditions"]] == [LENGTH, None]
    assert set(record["bytes"]) == set(record["graphs"]) >= {"condition", "step", "decode"}
    assert all(stage == stage.strip() and stage for stage in result.stderr.splitlines())
    assert os.listdir(here) == ["tiny-text.mmgen"]
    with load("tiny-text.mmgen") as generator:
        assert generator.generate(prompt="red apple").media.shape == (1, 16, 16, 3)


# Engines: what the export ends with, where there is a compiler


class Engines:
    """In place of what builds engines, as the entry point gives it."""

    def __init__(self) -> None:
        self.targets: list[tuple[str, ...]] = []
        self.said: str | MmgenError = "all about the engines"
        self.bad_target: MmgenError | None = None

    def prepare(self, targets: Sequence[str]) -> Callable[[Path, Callable[[str, float], None]], str]:
        self.targets.append(tuple(targets))
        if self.bad_target:
            raise self.bad_target
        return self.finish

    def finish(self, folder: Path, progress: Callable[[str, float], None]) -> str:
        assert (folder / MANIFEST).is_file(), "the bundle is there first"
        progress("compiling step", 0.5)
        if isinstance(self.said, MmgenError):
            raise self.said
        return self.said


@pytest.fixture
def at_once(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Replace exports by copies of the test bundle, and record their options."""

    def copy(model: Model, out: Path, **options: object) -> Bundle:
        asked.append(options)
        return read_bundle(shutil.copytree(bundle_folder, out))

    asked: list[dict[str, object]] = []
    monkeypatch.setattr("mmgen.export.exporter.export", copy)
    return asked


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, at_once: object) -> Engines:
    engines = Engines()
    monkeypatch.setattr("mmgen.engines.cli.after_export", engines.prepare)
    return engines


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (["--fp16"], [()]),
        (["--fp16", "--target", "sm86", "--target", "sm89"], [("sm86", "sm89")]),
        (["--fp32", "--target", "host"], [("host",)]),
        (["--fp16", "--no-engines"], []),
        (["--fp32"], []),
        ([], []),
        (["--target", "cpu"], [("cpu",)]),
        (["--fp16", "--target", "cpu", "--no-engines"], []),
    ],
    ids=["fp16", "fp16 for two", "fp32 for one", "fp16 without", "fp32", "nothing said", "CPUs", "any CPU"],
)
def test_engines_are_built_for_what_was_asked_or_for_half_precision(
    engines: Engines, options: list[str], asked: list[tuple[str, ...]]
) -> None:
    result = export(TINY, *options)
    assert result.exit_code == 0, result.output
    assert engines.targets == asked
    assert ("all about the engines" in result.stdout) == ("compiling step" in result.stderr) == bool(asked)
    assert result.stdout.startswith("tiny-text.mmgen\n")


@pytest.mark.parametrize(("targets", "alone"), [((), False), (("sm86",), False), (("cpu",), True)])
def test_a_bundle_for_cpus_alone_is_what_the_target_cpu_asks_for(
    engines: Engines, at_once: list[dict[str, object]], targets: tuple[str, ...], alone: bool
) -> None:
    assert export(TINY, *(f"--target={name}" for name in targets)).exit_code == 0
    assert [options["cpu_only"] for options in at_once] == [alone]


def test_for_cpus_it_ends_with_graphs_optimised_for_this_one(at_once: list[dict[str, object]], here: Path) -> None:
    result = export(TINY, "--fp16", "--target", "cpu", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert {kept["role"] for kept in record["optimised"]} == set(record["graphs"]) and record["engines"] == []


def test_engines_that_fail_leave_the_bundle_and_say_so(engines: Engines) -> None:
    engines.said = MmgenError("graph step: the compiler crashed", remedy="use another version")
    result = export(TINY, "--fp16", "--json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: tiny-text.mmgen is complete, but building its engines failed: graph step: the compiler crashed; "
        "use another version"
    )
    assert json.loads(result.stdout)["engines"] == []
    with load("tiny-text.mmgen") as generator:
        generator.generate(prompt="red apple")


def test_a_target_that_cannot_be_built_is_said_before_the_work(engines: Engines, here: Path) -> None:
    engines.bad_target = MmgenError("target", got="'mars'")
    result = export(TINY, "--fp16", "--target", "mars")
    assert (result.exit_code, result.stderr) == (1, "Error: target, got 'mars'\n")
    assert os.listdir(here) == []


def test_a_machine_that_builds_no_engines_says_on_stderr_how_to_get_there(
    monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    monkeypatch.setattr("mmgen.engines.targets.possible", lambda: Possible((), "no engines here; install a compiler"))
    result = export(TINY, "--fp16", "--json")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-1] == "no engines here; install a compiler"
    assert json.loads(result.stdout)["engines"] == []


@pytest.mark.slow
def test_a_half_precision_export_ends_with_real_engines_on_a_machine_without_a_gpu(here: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    result = export(TINY, "--fp16", "--target", "sm86", "--json")
    assert result.exit_code == 0, result.output
    (built,) = json.loads(result.stdout)["engines"]
    assert built["problem"] is None
    assert built["build"]["identity"]["place"]["compute_capabilities"] == ["sm86"]
    assert built["build"]["engines"]["step"]["report"]["half_layers"] > 100

    again = export(TINY, "--fp16", "--target", "sm86")
    assert "reused, built " in again.stdout, "the same model gives the same graphs, and engines outlive their bundle"


BROKEN = """
import dataclasses
import torch
from tiny_text import tiny_text_model

def not_finite():
    model = tiny_text_model()
    next(model.decoder.parameters()).data[0] = torch.nan
    return model

def wrong_shape():
    return dataclasses.replace(tiny_text_model(), latent_shape=(4, 6, 6))

def not_a_model():
    return 3

def fails():
    raise ValueError("no luck")
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "source 'nowhere' is neither a folder nor module:function"),
        (["nowhere.py:model"], "nowhere.py can't be imported"),
        (["."], "holds no model that mmgen knows"),
        (["broken.py:nothing"], "broken.py has no function 'nothing', wanted one of"),
        (["broken.py:fails"], "broken.py:fails failed (ValueError: no luck)"),
        (["broken.py:not_a_model"], "broken.py:not_a_model returned, got builtins.int"),
        (["broken.py:not_finite"], "decoder of tiny-text"),
        (["broken.py:wrong_shape"], "denoiser fails on (float32 (1, 4, 6, 6), float32 (1,)"),
        ([TINY, "-o", "nowhere/b.mmgen"], "nowhere is not there; make it"),
        ([TINY, "-o", "broken.py"], "broken.py exists and is not a bundle"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_a_failure_is_one_line_and_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.syspath_prepend(TESTS / "models")
    (here / "broken.py").write_text(BROKEN)
    before = sorted(set(os.listdir(here)))
    result = export(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and words in line
    assert [name for name in sorted(os.listdir(here)) if name != "__pycache__"] == before


def test_embedded_models_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch, at_once: None) -> None:
    exported: list[str | None] = []

    def resolve(source: str | None, **_: object) -> Model:
        exported.append(source)
        return tiny_text_model()

    monkeypatch.setattr("mmgen.export.sources.resolve", resolve)
    for arguments in ([], *(["--model", name] for name in embedded.names())):
        assert export(*arguments, "-o", f"{len(exported)}.mmgen").exit_code == 0
    assert exported == [None, *(str(embedded.folder(name)) for name in embedded.names())]
    assert f"[{'|'.join(embedded.names())}]" in export("--help").stdout
    unknown = export("--model", "emojis")
    assert unknown.exit_code == 2
    assert all(repr(name) in unknown.stderr for name in ("emojis", *embedded.names()))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--fp8"],
        [TINY, "another"],
        [TINY, "--target=host", "--no-engines"],
        [TINY, "--target=cpu", "--target=sm86"],
        [TINY, "--model", embedded.DEFAULT],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    result = export(*arguments)
    assert result.exit_code == 2
    assert "Usage: export" in result.stderr


def test_ctrl_c_is_130_and_keeps_the_older_bundle(here: Path, bundle_folder: Path) -> None:
    (here / "b.mmgen").mkdir()
    (here / "b.mmgen" / MANIFEST).write_bytes((bundle_folder / MANIFEST).read_bytes())
    before = sha256(here / "b.mmgen" / MANIFEST)

    def at_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # programs started in the background ignore it

    command = [*EXPORT, TINY, "-o", "b.mmgen"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=at_a_terminal) as process:
        assert process.stderr is not None
        while (line := process.stderr.readline()) != "tracing condition\n":
            assert line, "it ended early"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert (process.returncode, said) == (130, "interrupted\n")
    assert os.listdir(here) == ["b.mmgen"]
    assert sha256(here / "b.mmgen" / MANIFEST) == before
