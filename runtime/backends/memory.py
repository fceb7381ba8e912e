"""Layout of a request's tensors: slots of one block of memory, so that a call binds a block and offsets."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.storage.schema import TensorSpec, shape_of

ALIGNMENT = 256  # bytes; TensorRT's documented requirement for its memory


@dataclass(frozen=True)
class Slot:
    """A contiguous tensor in a block."""

    offset: int  # bytes from the start of the block, a multiple of ALIGNMENT unless it is an item of another slot
    shape: tuple[int, ...]
    dtype: str  # numpy's name

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __getitem__(self, index: int) -> "Slot":
        """Return item ``index`` of the first axis."""
        item = dataclasses.replace(self, shape=self.shape[1:])
        return dataclasses.replace(item, offset=self.offset + index * item.bytes)

    def part(self, start: int, stop: int) -> "Slot":
        """Return items ``start`` to ``stop`` of the first axis."""
        return dataclasses.replace(self[start], shape=(stop - start, *self.shape[1:]))

    def reshape(self, *shape: int) -> "Slot":
        """Return the same bytes in another shape."""
        return dataclasses.replace(self, shape=shape)

    def of(self, block: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the tensor, in a block of host memory."""
        array: NDArray[Any] = np.ndarray(self.shape, self.dtype, block.data, self.offset)
        return array


class Layout:
    """Slots one after another, each aligned."""

    def __init__(self) -> None:
        self.bytes = 0

    def slot(self, shape: tuple[int, ...], dtype: str = "float32") -> Slot:
        """Add one tensor."""
        slot = Slot(self.bytes, shape, dtype)
        self.bytes += -(-slot.bytes // ALIGNMENT) * ALIGNMENT
        return slot

    def slots(self, count: int, shape: tuple[int, ...], dtype: str = "float32") -> tuple[Slot, ...]:
        """Add tensors of one shape, each aligned."""
        return tuple(self.slot(shape, dtype) for _ in range(count))


def stacked(block: NDArray[np.uint8], slots: tuple[Slot, ...]) -> NDArray[Any]:
    """View slots from ``Layout.slots``, in a block of host memory, as one array (N, *shape)."""
    first: NDArray[Any] = slots[0].of(block)
    stride = slots[1].offset - slots[0].offset if len(slots) > 1 else first.nbytes
    shape, strides = (len(slots), *first.shape), (stride, *first.strides)
    array: NDArray[Any] = np.ndarray(shape, first.dtype, block.data, slots[0].offset, strides)
    return array


def slots_for(layout: Layout, specs: Iterable[TensorSpec], axes: Mapping[str, int]) -> dict[str, Slot]:
    """Add a slot for each tensor, and return them by name."""
    return {spec.name: layout.slot(shape_of(spec, axes), spec.dtype) for spec in specs}
