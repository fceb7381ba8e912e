"""Fixtures of tests that play engines on the stand-in: ``pytest_plugins = ["played"]``."""

import functools
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from play import OLDEST, Machine, builds, copied

from mmgen.runtime import Generator, load


@pytest.fixture(scope="module")
def played(bundle_folder: Path) -> Path:
    """The bundle that a file's tests play; those that play another one say which."""
    return bundle_folder


@pytest.fixture(scope="session")
def builds_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Callable[[str], Path]]:
    return functools.cache(lambda folder: builds(folder, tmp_path_factory))


@pytest.fixture(scope="module")
def built(played: Path, builds_of: Callable[[Path], Callable[[str], Path]]) -> Callable[[str], Path]:
    """It with engines of a release; read only."""
    return builds_of(played)


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


@pytest.fixture
def generator(machine: Machine, built: Callable[[str], Path]) -> Iterator[Generator]:
    with load(built(machine.release), machine.flavour) as opened:
        yield opened


@pytest.fixture(scope="module")
def wanted(played: Path) -> Iterator[Generator]:
    """ONNX Runtime on the CPU."""
    with load(played, "ort-cpu") as opened:
        yield opened
