"""A generator whose evaluations a test may watch and hold up, one to compare it with, and threads."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from watched import Watched

from mmgen.runtime import Generator, load
from mmgen.runtime.storage.bundle import read_bundle


@pytest.fixture(scope="module")
def wanted(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, "ort-cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def backend() -> Watched:
    return Watched()


@pytest.fixture
def generator(bundle_folder: Path, backend: Watched) -> Iterator[Generator]:
    with Generator(read_bundle(bundle_folder, verify=False), backend) as opened:
        yield opened


@pytest.fixture
def pool() -> Iterator[Callable[..., "Future[Any]"]]:
    """Runs a call in a thread of its own."""
    pools: list[ThreadPoolExecutor] = []

    def start(call: Callable[..., Any], *given: Any, **named: Any) -> "Future[Any]":
        pools.append(ThreadPoolExecutor(1))
        return pools[-1].submit(call, *given, **named)

    yield start
    for each in pools:
        each.shutdown()
