"""The ``mmgen-export`` command: names, results, and failing without a trace."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_text import LENGTH
from tree import TESTS

from mmgen.export.cli import main
from mmgen.runtime import load
from mmgen.runtime.bundle import MANIFEST, sha256

TINY = f"{TESTS / 'tiny_text.py'}:tiny_text_model"
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
        ([TINY, "-o", "broken.py"], "broken.py is there and is not a bundle"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_a_failure_is_one_line_and_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.syspath_prepend(TESTS)
    (here / "broken.py").write_text(BROKEN)
    before = sorted(set(os.listdir(here)))
    result = export(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and words in line
    assert [name for name in sorted(os.listdir(here)) if name != "__pycache__"] == before


@pytest.mark.parametrize("arguments", [["--fp8"], [TINY, "another"]])
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
