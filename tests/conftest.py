"""What all tests share: a small bundle, and which files are left out where torch is not installed."""

import fcntl
import functools
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tree import HELPERS, TESTS, imports, top_level

from mmgen.runtime.backends.ort.importing import import_onnxruntime

with suppress(ImportError):
    import_onnxruntime()  # before a test does, and reports it

BUNDLE = "MMGEN_TEST_BUNDLE"
COME_WITH_TORCH = {"torch", "onnx", "onnx_ir", "onnxscript", "diffusers", "transformers", "safetensors"}
without_torch = importlib.util.find_spec("torch") is None


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The fp16 bundle of ``tiny_text``: the one that the environment names, or made here.  No test may change it."""
    folder = _bundle(tmp_path_factory)
    before = (folder / "bundle.json").read_bytes()
    yield folder
    assert (folder / "bundle.json").read_bytes() == before, "a test changed the bundle that all tests share"


def _bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if BUNDLE in os.environ:
        return Path(os.environ[BUNDLE]).resolve()
    if without_torch:
        pytest.fail(f"torch is not installed; name an exported bundle in {BUNDLE}, as make test-runtime does")
    folder = tmp_path_factory.mktemp("bundle") / "test.mmgen"
    source = f"{TESTS / 'models' / 'tiny_text.py'}:tiny_text_model"
    command = "from mmgen.export.cli import main; main()"
    subprocess.run([sys.executable, "-c", command, source, "--fp16", "--no-engines", "-o", str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def exported_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export a model that a function of the tests makes, once for all processes of a run; the bundle is read only."""
    from traced_once import remembering

    from mmgen.export import exporter

    trace = remembering(tmp_path_factory.mktemp("traces"))
    models = functools.cache(lambda make: make())
    own = tmp_path_factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def exported(make: Callable[[], Any], policy: str = "fp32") -> Path:
        folder = root / f"{make.__module__}.{make.__name__}.{policy}.mmgen"
        with (root / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(exporter, "trace", trace)
                    exporter.export(models(make), folder, policy=policy)
        return folder

    return exported


@pytest.fixture
def bundle_copy(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, b.mmgen in an empty folder, which is the working folder."""
    shutil.copytree(bundle_folder, tmp_path / "b.mmgen")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "b.mmgen"


@pytest.fixture(scope="module", params=["ort-cpu", "openvino"])
def cpu(request: pytest.FixtureRequest) -> str:
    """A backend that runs on any machine."""
    if request.param == "openvino" and not importlib.util.find_spec("openvino"):
        pytest.skip("OpenVINO is not installed")
    return str(request.param)


def needs_torch(file: Path) -> bool:
    """Whether a test file, or a helper that it imports, imports torch or what comes with it."""
    if top_level(file) & COME_WITH_TORCH or any(name.startswith("mmgen.export.") for name in imports(file)):
        return True
    beside = [folder / f"{name}.py" for name in top_level(file) for folder in HELPERS]
    return any(needs_torch(helper) for helper in beside if helper.is_file() and helper != file)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Leave files out; the header says which."""
    test = collection_path.name.startswith("test_")
    return True if without_torch and test and needs_torch(collection_path) else None


@pytest.fixture(autouse=True, scope="module")
def frozen() -> None:
    """What is there before a file's tests stays: garbage is collected without searching torch, or others' models."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str | None:
    """Without torch, what is not tested."""
    if not without_torch:
        return None
    left_out = sorted(file.name for file in TESTS.rglob("test_*.py") if needs_torch(file))
    return f"torch is not installed; left out: {', '.join(left_out) or 'nothing'}"
