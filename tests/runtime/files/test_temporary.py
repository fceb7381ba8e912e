"""A machine where no folder for temporary files can be written: what needs none works, and the rest says so."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from fake_compiler import REPORT, compiled

from mmgen.engines.compile import Job
from mmgen.engines.worker import compile_apart
from mmgen.export.base.leftovers import CACHE, nothing_left
from mmgen.export.sources.weight_files import Weights, laid_out
from mmgen.runtime.base.errors import MmgenError

SAID = r"^there is no folder for temporary files that can be written; set TMPDIR to a folder that can be$"


@pytest.fixture(autouse=True)
def no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    with pytest.raises(FileNotFoundError, match="No usable temporary directory"):
        tempfile.gettempdir()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("step", "tensorrt-rtx", ("sm86",), "step.onnx", (), (), (), str(tmp_path / "step.engine"))


def test_engines_are_compiled(job: Job, tmp_path: Path) -> None:
    assert compiled(job, "pass") == REPORT
    assert list(tmp_path.iterdir()) == []


def test_an_export_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE, raising=False)
    with pytest.raises(MmgenError, match=SAID), nothing_left():
        pytest.fail("the block was entered")


def test_weights_that_are_laid_out_say_what_is_missing(tmp_path: Path) -> None:
    weights = Weights(tmp_path, "model.safetensors", None, (tmp_path / "model.safetensors",))
    with pytest.raises(MmgenError, match=SAID), laid_out(weights):
        pytest.fail("the block was entered")


def test_a_compiler_that_cannot_be_started_is_not_a_bundle_that_cannot_be_written(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MmgenError, match=r"^graph step: the compiler can't be started \(No such file or directory\)"):
        compile_apart(job, lambda share: None, expected=1, command=["/nonexistent"])

    def full(*arguments: object, **options: object) -> None:
        raise OSError(12, os.strerror(12))

    monkeypatch.setattr(subprocess, "Popen", full)
    with pytest.raises(MmgenError, match=r"the compiler can't be started \(Cannot allocate memory\)"):
        compiled(job, "pass")
