"""Bundles for CPUs alone: they say why, and what would put them on a GPU refuses at once."""

import json
import logging
from pathlib import Path

import pytest
from commands import done, mmgen
from manifests import edit

from mmgen.runtime import MmgenError, building, load
from mmgen.runtime.cli.doctor import record
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.verify import verify

WHY = "DFT node_rfft (denoiser) and 1 more: TensorRT has no such operator"


@pytest.fixture
def folder(bundle_copy: Path) -> Path:
    """Copy a bundle and declare its step and its decoder for CPUs alone; its graphs are ordinary ones."""
    edit(bundle_copy, lambda record: record.update(cpu_only={"step": [WHY], "decode": ["tensor a is float64"]}))
    return bundle_copy


def test_a_bundle_that_says_nothing_of_it_is_for_every_device(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda record: record.pop("cpu_only", None))  # as an older exporter wrote it
    assert read_bundle(bundle_copy).cpu_only == {}
    assert "CPUs" not in done("inspect", "b.mmgen").stdout


def test_inspect_says_why(folder: Path) -> None:
    said = done("inspect", "b.mmgen").stdout
    assert "for CPUs alone, since TensorRT can't build:\n" in said
    assert f"  step: {WHY}\n  decode: tensor a is float64\n" in said
    assert json.loads(done("inspect", "b.mmgen", "--json").stdout)["cpu_only"]["step"] == [WHY]


@pytest.mark.parametrize("targets", [[], ["--target=host"], ["--target=sm86", "--target=sm89"], ["--axis=B=1"]])
def test_build_refuses_with_the_reasons_whatever_is_installed(folder: Path, targets: list[str]) -> None:
    result = mmgen("build", "b.mmgen", *targets)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: b.mmgen is for CPUs alone, since TensorRT can't build it, "
        f"got graph step: {WHY}; graph decode: tensor a is float64; "
        "mmgen build b.mmgen --target cpu optimises it for this processor"
    )
    assert not (folder / "engines").exists()


def test_build_optimises_it_for_this_processor(folder: Path) -> None:
    roles = set(read_bundle(folder).graphs)
    assert len(json.loads(done("build", "b.mmgen", "--target=cpu", "--json").stdout)["optimised"]) == len(roles)
    done("generate", "b.mmgen", "--prompt=red", "-o", "red.png")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("build", [False, True])
def test_a_tensorrt_backend_refuses_with_the_reasons(
    folder: Path, backend: str, build: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "open_device", lambda: pytest.fail("no device is needed"))
    with pytest.raises(MmgenError, match=r"for CPUs alone, since TensorRT can't build it, got graph step: DFT"):
        load(folder, backend, build=build)


def test_auto_takes_what_it_was_validated_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not OpenVINO, though it comes before: it may have other ideas of such operators."""
    caplog.set_level(logging.INFO, "mmgen")
    with load(folder, build=True) as generator:
        assert generator.backend == "ort-cpu"
    assert all(receipt.passed for receipt in verify(folder))
    assert "no engines were built: " in caplog.text and WHY in caplog.text
    found = record(read_bundle(folder))
    assert found["auto"] == "ort-cpu"
    assert WHY in next(backend["reason"] for backend in found["backends"] if backend["name"] == "tensorrt")
