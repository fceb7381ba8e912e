"""Processes that mmgen starts import nothing from the folder in which they are started."""

import ast
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tree import ROOT

from mmgen.runtime import Request, load
from mmgen.runtime.base.children import python
from mmgen.runtime.bench.ceilings import host_ceilings
from mmgen.runtime.bench.cold_start import cold_start

NAMES = ("numpy", "onnxruntime", "mmgen", "json", "threading", "click", "google")


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears when a module of the working folder is imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w'); raise SystemExit('trapped')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path / "sprung"


def test_code_imports_what_is_installed(trap: Path) -> None:
    code = f"import sys, {', '.join(NAMES)}; print(*sys.argv[1:])"
    ran = subprocess.run([*python(code), "a", "b"], capture_output=True, text=True, check=True)
    assert ran.stdout == "a b\n" and not trap.exists()


def test_a_build_that_was_asked_for(trap: Path, bundle_folder: Path) -> None:
    shutil.copytree(bundle_folder, "copy.mmgen", ignore=shutil.ignore_patterns("optimised", "engines"))
    load("copy.mmgen", "ort-cpu", build=True).close()
    assert os.listdir("copy.mmgen/optimised") and not trap.exists()


def test_a_cold_start_and_the_ceilings_of_a_bench(trap: Path, bundle_folder: Path) -> None:
    cold_start(bundle_folder, "ort-cpu", 1, Request(conditions={"prompt": "red"}, steps=1))
    host_ceilings(1)
    assert not trap.exists()


@pytest.mark.parametrize("package", ["runtime", "engines", "export"])
def test_python_is_started_in_no_other_way(package: str) -> None:
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / package).rglob("*.py")}
    starts = {name for name, tree in trees.items() for n in ast.walk(tree) if getattr(n, "attr", "") == "executable"}
    assert starts <= {"children"}
