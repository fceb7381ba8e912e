"""Folders of the pipeline that a test file makes in its fixture ``pipeline``."""

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def written(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that diffusers writes.  No test may change it."""
    folder = tmp_path_factory.mktemp("pipeline") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"
