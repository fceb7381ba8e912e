"""A request's memory: laid out once for a size, written again for every request, freed with its last use."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from mmgen.runtime import MmgenError, load
from mmgen.runtime.backends.host import HostBlock
from mmgen.runtime.backends.memory import ALIGNMENT, Layout, Slot, stacked
from mmgen.runtime.backends.ort.cpu import OrtCpu, OrtRunner
from mmgen.runtime.backends.protocol import Block, Call
from mmgen.runtime.generator import Generator
from mmgen.runtime.loop.plans import PLANS
from mmgen.runtime.storage.bundle import read_bundle


class Poisoned(HostBlock):
    """Fresh memory holds NaN, and so does closed memory."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.host[:] = 0xFF
        self.closed = False

    def close(self) -> None:
        self.host[:] = 0xFF
        self.closed = True


class Watched(OrtCpu):
    """ONNX Runtime on the CPU, which keeps its blocks for the test to see."""

    def __init__(self) -> None:
        super().__init__(onnxruntime, 1)
        self.blocks: list[Poisoned] = []

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        self.blocks.append(Poisoned(host_bytes + other_bytes))
        return self.blocks[-1]


@pytest.fixture
def watched(bundle_folder: Path) -> Iterator[tuple[Generator, Watched]]:
    backend = Watched()
    with Generator(read_bundle(bundle_folder), backend) as generator:
        yield generator, backend


def test_slots_are_aligned_and_do_not_overlap() -> None:
    layout = Layout()
    slots = [layout.slot((3,)), *layout.slots(2, (5, 7), "int64"), layout.slot((), "uint8")]
    for slot, following in zip(slots, [*slots[1:], Slot(layout.bytes, (), "uint8")], strict=True):
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset + slot.bytes <= following.offset


def test_an_item_of_a_slot_and_a_new_shape_are_the_same_memory() -> None:
    layout = Layout()
    slot = layout.slot((4, 2, 3))
    memory = np.zeros(layout.bytes, np.uint8)
    slot.of(memory)[:] = np.arange(24).reshape(4, 2, 3)
    assert np.array_equal(slot[2].of(memory), slot.of(memory)[2])
    assert np.array_equal(slot.reshape(8, 3).of(memory), slot.of(memory).reshape(8, 3))


@pytest.mark.parametrize("count", [1, 4])
def test_slots_of_one_shape_can_be_written_at_once(count: int) -> None:
    layout = Layout()
    layout.slot((1,))
    slots = layout.slots(count, (2, 3))
    memory = np.zeros(layout.bytes, np.uint8)
    stacked(memory, slots)[:] = np.arange(count * 6).reshape(count, 2, 3)
    for i, slot in enumerate(slots):
        assert np.array_equal(slot.of(memory), np.arange(6).reshape(2, 3) + 6 * i)


def test_requests_of_one_size_share_memory(watched: tuple[Generator, Watched]) -> None:
    generator, backend = watched
    for seed, guidance, prompt in ((0, 2.0, "a red circle"), (1, 3.0, "blue"), (2, 2.5, "")):
        generator.generate(prompt=prompt, steps=3, seed=seed, guidance=guidance)
    assert len(backend.blocks) == 1
    generator.generate(prompt="blue", steps=3, guidance=1.0)
    generator.generate(prompt="blue", steps=4)
    generator.generate(prompt="blue", steps=3, count=2)
    assert len(backend.blocks) == 4


def test_nothing_that_was_not_written_is_read(watched: tuple[Generator, Watched], bundle_folder: Path) -> None:
    """Neither fresh memory, which holds NaN here, nor what the last request left."""
    generator, _ = watched
    with load(bundle_folder, "ort-cpu", threads=1) as other:
        for seed in (0, 1):
            wanted = other.generate(prompt="a red circle", steps=3, seed=seed)
            got = generator.generate(prompt="a red circle", steps=3, seed=seed)
            assert np.array_equal(got.latents, wanted.latents)
            assert np.array_equal(got.media, wanted.media)
            generator.generate(prompt="something else", steps=3, seed=9)


def test_the_least_recently_used_memory_goes_first(watched: tuple[Generator, Watched]) -> None:
    generator, backend = watched
    for steps in (*range(1, PLANS + 1), 1, PLANS + 1):
        generator.generate(prompt="blue", steps=steps)
    assert [block.closed for block in backend.blocks] == [False, True, *[False] * (PLANS - 1)]
    generator.close()
    assert all(block.closed for block in backend.blocks)


def test_an_error_in_the_loop_gives_its_memory_back(
    watched: tuple[Generator, Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, backend = watched
    wanted = generator.generate(prompt="blue", steps=2)
    bind = OrtRunner.bind

    def failing(self: OrtRunner, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        bound = bind(self, block, calls)
        if len(calls) == 5:  # the steps
            bound[3] = fail
        return bound

    def fail() -> None:
        raise MmgenError("the device failed")

    monkeypatch.setattr(OrtRunner, "bind", failing)
    with pytest.raises(MmgenError, match="the device failed"):
        generator.generate(prompt="blue", steps=5)
    assert [block.closed for block in backend.blocks] == [False, True]
    again: Any = generator.generate(prompt="blue", steps=2)
    assert np.array_equal(again.latents, wanted.latents)


def test_memory_is_given_back_when_a_graph_cannot_be_bound(
    watched: tuple[Generator, Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, backend = watched

    def refuse(self: OrtRunner, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        raise MmgenError("no such shape")

    monkeypatch.setattr(OrtRunner, "bind", refuse)
    with pytest.raises(MmgenError, match="no such shape"):
        generator.generate(prompt="blue", steps=5)
    assert [block.closed for block in backend.blocks] == [True]
