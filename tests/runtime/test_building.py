"""``load(build=True)``: engines are made when they are asked for, by a process of their own, and never otherwise."""

import logging
import shutil
from pathlib import Path

import pytest

from mmgen.runtime import MmgenError, building, load
from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.building import ensure_built, run_build
from mmgen.runtime.storage.bundle import read_bundle

try:
    open_device().close()
    GPU = True
except MmgenError:
    GPU = False
without_gpu = pytest.mark.skipif(GPU, reason="there is a GPU here")


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("engines")
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.mmgen", ignore=ignored))


@without_gpu
def test_where_there_is_no_gpu_auto_loads_the_cpu_and_says_that_nothing_was_built(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mmgen")
    with load(copy, build=True) as generator:
        assert generator.backend in ("openvino", "ort-cpu")
    assert "no engines were built: " in caplog.text
    assert not (copy / "engines").exists()


@without_gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_where_there_is_no_gpu_a_backend_that_needs_one_is_an_error(copy: Path, backend: str) -> None:
    with pytest.raises(MmgenError, match=r"CUDA|driver"):
        load(copy, backend, build=True)


def test_a_backend_without_engines_builds_none(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "open_device", lambda: pytest.fail("no device is needed"))
    ensure_built(read_bundle(copy), "ort-cpu")


def test_the_builder_is_the_mmgen_build_of_this_environment(copy: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    said: list[str] = []
    run_build([str(copy), "--target", "sm86"], said.append)
    assert any("compiling step" in line for line in said)
    assert list((copy / "engines").glob("*/step.engine"))


def test_a_build_that_fails_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    with pytest.raises(MmgenError, match=r"^mmgen build failed: .*nothing\.mmgen is not there"):
        run_build([str(tmp_path / "nothing.mmgen"), "--target", "sm86"], lambda line: None)
