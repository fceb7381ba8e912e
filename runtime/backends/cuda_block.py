"""A request's memory on a CUDA device, and the pinned memory that the host writes it in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.cuda import Device, Pinned
from mmgen.runtime.backends.memory import Layout, Slot
from mmgen.runtime.base.errors import MmgenError


class CudaBlock:
    """A request's memory: all of it on the device, and the part that the host writes in pinned memory as well."""

    def __init__(self, device: Device, host_bytes: int, other_bytes: int) -> None:
        self._device = device
        self._host_bytes = host_bytes
        self._memory = device.memory(host_bytes + other_bytes)
        self._staging = device.pinned(host_bytes)
        self._uploaded = device.event()
        self._landing: Pinned | None = None  # reading copies to it first
        self._closed = False

    @property
    def host(self) -> NDArray[np.uint8]:
        self._check()
        self._device.wait(self._uploaded)
        return self._staging.array[: self._host_bytes]

    def upload(self, end: int | None = None) -> None:
        self._check()
        self._device.to_device(self._memory.address, self._staging.address, self._host_bytes if end is None else end)
        self._device.mark(self._uploaded)

    def read(self, *slots: Slot) -> tuple[NDArray[Any], ...]:
        self._check()
        layout = Layout()
        landings = [layout.slot(slot.shape, slot.dtype) for slot in slots]
        if self._landing is None or self._landing.bytes < layout.bytes:
            self._landing = self._device.pinned(layout.bytes)
        for slot, landing in zip(slots, landings, strict=True):
            self._device.to_host(self._landing.address + landing.offset, self.address(slot), slot.bytes)
        self._device.wait()
        landed = self._landing.array
        return tuple(landing.of(landed).copy() for landing in landings)

    def address(self, slot: Slot) -> int:
        """Return a slot's address on the device."""
        self._check()
        return self._memory.address + slot.offset

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            landing = () if self._landing is None else (self._landing,)
            self._device.release(self._memory, self._staging, self._uploaded, *landing)

    def _check(self) -> None:
        if self._closed:
            raise MmgenError("the memory of this request was freed", remedy="make the request again")
