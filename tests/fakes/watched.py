"""ONNX Runtime on the CPU, watched: its memory is seen to be freed, and its evaluations wait for a test."""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mmgen.runtime import Generator
from mmgen.runtime.backends.host import HostBlock
from mmgen.runtime.backends.ort.cpu import OrtCpu
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.backends.protocol import Block

ASKED: dict[str, Any] = {"prompt": "red apple", "seed": 3, "steps": 4}
SOON = 20.0  # seconds after which a test says that something waits for ever


class Traced(HostBlock):
    """Memory of which it is known whether it was freed."""

    closed = False

    def close(self) -> None:
        self.host[:] = 0xFF
        self.closed = True


class Watched(OrtCpu):
    """ONNX Runtime on the CPU; ``meanwhile`` is called in each evaluation, and blocks are kept for the test to see."""

    def __init__(self) -> None:
        super().__init__(import_onnxruntime(), 1)
        self.blocks: list[Traced] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.closed = False

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        self.blocks.append(Traced(host_bytes + other_bytes))
        return self.blocks[-1]

    def wait(self) -> None:
        self.meanwhile()

    def close(self) -> None:
        self.closed = True

    @property
    def held(self) -> int:
        """Blocks that aren't freed."""
        return sum(not block.closed for block in self.blocks)


class Gate:
    """An evaluation that lasts until it is let go."""

    def __init__(self, backend: Watched) -> None:
        self._entered, self._open = threading.Event(), threading.Event()
        backend.meanwhile = self._pass

    def _pass(self) -> None:
        self._entered.set()
        assert self._open.wait(SOON)

    def wait(self) -> None:
        """Return when somebody is inside."""
        assert self._entered.wait(SOON)

    def open(self) -> None:
        self._open.set()


def same(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours.latents, theirs.latents)
    np.testing.assert_array_equal(ours.media, theirs.media)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def inside(generator: Generator) -> int:
    """Threads that wait for a turn or have it."""
    return sum(lock.locked() for lock in [*generator._turns._inside.values()])
