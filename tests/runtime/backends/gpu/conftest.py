"""A bundle that a GPU backend runs, its generator, and the CPU's to compare it with."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from on_gpu import BACKENDS, built

from mmgen.runtime import load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.generator import Generator


@pytest.fixture(scope="session", params=BACKENDS)
def here(request: pytest.FixtureRequest, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that a GPU backend runs; its name is the backend's."""
    try:
        return built(request.param, bundle_folder, tmp_path_factory.mktemp("gpu") / request.param)
    except MmgenError as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture
def generator(here: Path) -> Iterator[Generator]:
    with load(here, here.name) as generator:
        yield generator


@pytest.fixture(scope="module")
def cpu(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu") as generator:
        yield generator
