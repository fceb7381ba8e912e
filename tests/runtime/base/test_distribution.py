"""What mmgen is called where packages are installed from, and that what errors say to type works there."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tree import ROOT

from mmgen.runtime.base import distribution
from mmgen.runtime.base.distribution import NAME, extra, unloaded
from mmgen.runtime.cli.main import main

PROJECT = (ROOT / "pyproject.toml").read_text() if (ROOT / "pyproject.toml").is_file() else ""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that is found before any other."""
    folder = tmp_path / f"{NAME.replace('-', '_')}-1.2.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.2.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def from_where(installed: Path, url: str, **more: Any) -> str:
    (installed / "direct_url.json").write_text(json.dumps({"url": url, **more}))
    return extra("ort")


def test_from_an_index_an_extra_is_added_by_name(installed: Path) -> None:
    assert (distribution.version(), extra("ort")) == ("1.2.3", "pip install 'mmgen-dit[ort]'")


def test_from_a_folder_or_a_wheel_it_is_added_from_there(installed: Path, tmp_path: Path) -> None:
    clone, wheel = tmp_path / "my clone", tmp_path / "mmgen_dit-1.2.3-py3-none-any.whl"
    clone.mkdir()
    wheel.touch()
    assert from_where(installed, clone.as_uri(), dir_info={}) == f"pip install '{clone}[ort]'"
    assert from_where(installed, clone.as_uri(), dir_info={"editable": True}) == f"pip install -e '{clone}[ort]'"
    assert from_where(installed, wheel.as_uri(), archive_info={}) == f"pip install '{wheel}[ort]'"
    clone.rmdir()
    assert from_where(installed, clone.as_uri(), dir_info={}) == "pip install '.[ort]' in the folder of mmgen's source"


def test_from_a_repository_or_an_address_it_is_added_from_there(installed: Path) -> None:
    revision = {"vcs": "git", "commit_id": "abc"}
    assert from_where(installed, "https://host/mmgen.git", vcs_info=revision) == (
        "pip install 'mmgen-dit[ort] @ git+https://host/mmgen.git@abc'"
    )
    assert from_where(installed, "https://host/m.whl", archive_info={}) == (
        "pip install 'mmgen-dit[ort] @ https://host/m.whl'"
    )


def test_where_nothing_is_installed_it_is_added_from_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "NAME", "of-no-package-here")
    assert extra("ort") == "pip install '.[ort]' in the folder of mmgen's source"


@pytest.mark.slow
@pytest.mark.skipif(not PROJECT, reason="the tree is not here")
def test_every_extra_that_errors_name_is_one() -> None:
    named = set()
    for file in (file for folder in ("runtime", "export", "engines") for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "extra":
                named.add(ast.literal_eval(node.args[0]))
    table = PROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    assert {"ort", "ort-cuda", "openvino", "rtx", "export"} <= named <= set(re.findall(r"^([\w-]+) = \[", table, re.M))


@pytest.mark.skipif(not PROJECT, reason="the tree is not here")
def test_nothing_says_to_install_the_other_project_of_the_name() -> None:
    assert f'name = "{NAME}"' in PROJECT
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    files += [file for folder in ("runtime", "export", "engines", "tests") for file in (ROOT / folder).rglob("*.py")]
    wrong = ("mmgen" + "[", "mmgen" + r"\[", "install " + "mmgen ")
    assert not [file for file in files if any(word in file.read_text(encoding="utf-8") for word in wrong)]


def test_the_version_is_that_of_what_is_installed() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="mmgen")
    assert (result.exit_code, result.stdout) == (0, f"mmgen, version {distribution.version()}\n")


def test_what_is_installed_and_cannot_be_loaded_is_not_called_missing() -> None:
    missing = unloaded("ONNX Runtime", ModuleNotFoundError("No module named 'onnxruntime'"), "pip install it")
    assert str(missing) == "ONNX Runtime is not installed; pip install it"
    for error in (ImportError("libx.so: failed to map segment"), OSError("out of address space"), MemoryError()):
        told = str(unloaded("ONNX Runtime", error, "pip install it"))
        assert told.startswith("ONNX Runtime is installed and can't be loaded (") and "memory" in told
