"""What is promised: the names in ``__all__`` of the packages, and that nothing of them is lost unnoticed."""

import importlib.metadata
from pathlib import Path

import pytest

import mmgen.runtime
from mmgen.runtime.base.distribution import NAME

RUNTIME = {
    "EDM", "Cancelled", "Condition", "Defaults", "Diffusion", "Flow", "Generator", "Masked", "Media", "MmgenError",
    "Progress", "Request", "Result", "Stream", "Timings", "__version__", "load",
}  # fmt: skip
EXPORT = {
    "EDM", "Condition", "Defaults", "Diffusion", "Flow", "Masked", "Media", "MmgenError", "Model", "OnnxModule",
    "Output", "export", "resolve",
}  # fmt: skip
OLDER = {  # paths that README showed before there were rooms
    "mmgen.runtime.bundle": "Condition Defaults Media read_bundle",
    "mmgen.runtime.process": "Diffusion Flow Masked",
    "mmgen.runtime.errors": "Cancelled MmgenError",
    "mmgen.export.model": "Model",
}


def test_the_runtime_has_what_it_promises() -> None:
    assert set(mmgen.runtime.__all__) == RUNTIME
    assert all(hasattr(mmgen.runtime, name) for name in RUNTIME)
    assert mmgen.runtime.__version__ == importlib.metadata.version(NAME)


def test_so_has_the_exporter() -> None:
    export = pytest.importorskip("mmgen.export")
    pytest.importorskip("torch")
    assert set(export.__all__) == EXPORT
    assert all(hasattr(export, name) for name in EXPORT)


def test_programs_written_for_an_older_release_find_the_names_that_they_use(bundle_folder: Path) -> None:
    with mmgen.runtime.load(bundle_folder, "ort-cpu", threads=1) as generator:
        *_, last = generator.stream(prompt="red", steps=2)
        result = last.result()
    assert (last.row, last.rows) == (last.evaluation, last.evaluations) == (2, 2)
    assert (result.rows, result.rows_run) == (result.evaluations, result.evaluations_run) == (2, 2)


@pytest.mark.parametrize("module", OLDER)
def test_models_written_for_an_older_release_are_read(module: str) -> None:
    if module.startswith("mmgen.export"):
        pytest.importorskip("torch")
    there = importlib.import_module(module)
    assert set(OLDER[module].split()) <= set(there.__all__)
