"""Fixtures of tests that play engines on the stand-in: ``pytest_plugins = ["played"]``."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from play import OLDEST, Machine, builds, copied

from mmgen.runtime import Generator, load


@pytest.fixture(scope="session")
def built(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle with engines of a release; read only."""
    return builds(bundle_folder, tmp_path_factory)


@pytest.fixture
def release() -> str:
    return OLDEST


@pytest.fixture
def machine(release: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine on which nothing was used wrongly and nothing is left when the test ends."""
    gc.freeze()  # what is there already isn't searched for what this test leaves
    made = Machine(release, monkeypatch)
    yield made
    gc.collect()
    assert made.cuda.memory.misuses == []
    assert made.live() == {}


@pytest.fixture
def bundle(machine: Machine, built: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of it, of the machine's release, to write into."""
    return copied(built(machine.release), tmp_path / "test.mmgen")


@pytest.fixture(scope="session")
def wanted(bundle_folder: Path) -> Iterator[Generator]:
    """ONNX Runtime on the CPU."""
    with load(bundle_folder, "ort-cpu") as generator:
        yield generator
