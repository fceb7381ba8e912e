"""The CUDA layer on a stand-in for a device, with the bindings' own names and statuses, whose work runs late.

What only a device can tell is in test_gpu.
"""

import gc
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cuda.bindings", reason="Python's bindings of CUDA are not installed")

from cuda.bindings import runtime as real
from standin_cuda import Cuda
from standin_device import Gpu

from mmgen.runtime.backends.cuda import Device, open_device
from mmgen.runtime.backends.cuda_block import CudaBlock
from mmgen.runtime.backends.memory import Layout, Slot
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench import ceilings

STATUS = real.cudaError_t


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """A device; nothing may have been used wrongly when the test ends."""
    standin = Cuda()
    standin.install(monkeypatch)
    yield standin
    assert standin.memory.misuses == []


@pytest.fixture
def device(cuda: Cuda) -> Iterator[Device]:
    opened = open_device()
    yield opened
    opened.close()
    assert cuda.live() == {}


def test_a_device_says_what_it_is(device: Device) -> None:
    assert (device.name, device.compute_capability, device.multiprocessors) == ("Orin", "sm87", 8)
    assert (device.memory_bytes, device.driver_cuda) == (8 << 30, "12.6")
    assert device.free_bytes() == 8 << 30


def test_a_device_copies_within_its_memory(device: Device) -> None:
    first, second, landing = device.memory(1024), device.memory(1024), device.pinned(1024)
    landing.array[:] = np.arange(1024, dtype=np.uint8)
    device.to_device(first.address, landing.address, 1024)
    device.copy(second.address, first.address, 1024)
    device.wait()
    landing.array[:] = 0
    device.to_host(landing.address, second.address, 1024)
    device.wait()
    assert np.array_equal(landing.array, np.arange(1024, dtype=np.uint8))


def test_a_device_s_bandwidth_is_measured_by_copies_and_its_arithmetic_is_not(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "BYTES", 1 << 16)
    monkeypatch.setattr(ceilings, "SECONDS", 0.0)
    found = ceilings.device_ceilings()
    assert found.device == "Orin" and found.bytes > 0
    assert (found.operations, found.threads, found.busy) == (None, None, None)
    assert cuda.live() == {}


def test_compute_capabilities_of_two_digits(cuda: Cuda) -> None:
    cuda.gpu = Gpu(compute_capability=(11, 0))
    device = open_device()
    assert device.compute_capability == "sm110"
    device.close()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists() or Path("/dev/nvhost-gpu").exists(), reason="a GPU may be here")
def test_the_real_bindings_on_this_machine_give_a_reason() -> None:
    with pytest.raises(MmgenError, match=r"no NVIDIA driver|no CUDA device|CUDA of the NVIDIA driver"):
        open_device()


def test_no_driver(cuda: Cuda) -> None:
    cuda.gpu = None
    with pytest.raises(MmgenError, match=r"no NVIDIA driver is on this machine; .*--gpus all"):
        open_device()


def test_a_driver_that_is_too_old(cuda: Cuda) -> None:
    cuda.gpu = Gpu(driver=11040)
    cuda.fail("cudaGetDeviceCount", STATUS.cudaErrorInsufficientDriver)
    with pytest.raises(MmgenError, match=r"got 11\.4, wanted 12\.6 or later; .*cuda-bindings<12"):
        open_device()


def test_no_device(cuda: Cuda) -> None:
    cuda.gpu, cuda.missing = None, STATUS.cudaErrorNoDevice
    with pytest.raises(MmgenError, match=r"no CUDA device is visible; .*CUDA_VISIBLE_DEVICES"):
        open_device()


def test_a_device_that_is_not_there(cuda: Cuda) -> None:
    with pytest.raises(MmgenError, match="CUDA device, got 1, wanted less than 1"):
        open_device(1)


def test_what_the_host_wrote_comes_back(device: Device) -> None:
    block, (floats, integers) = _block(device)
    floats.of(block.host)[:] = np.arange(6).reshape(2, 3)
    integers.of(block.host)[:] = [[1, 2], [3, 4], [5, 6]]
    block.upload()
    read = block.read(integers, floats, integers[1])
    np.testing.assert_array_equal(read[0], [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(read[1], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(read[2], [3, 4])
    assert [array.dtype for array in read] == [np.int64, np.float32, np.int64]


def test_what_was_read_is_a_copy(device: Device) -> None:
    block, (floats, _) = _block(device)
    for value in (1, 2):
        floats.of(block.host)[:] = value
        block.upload()
        if value == 1:
            (first,) = block.read(floats)
    assert (first == 1).all() and (block.read(floats)[0] == 2).all()


def test_many_slots_are_read_with_one_wait(cuda: Cuda, device: Device) -> None:
    block, slots = _block(device)
    block.upload()
    block.read(*slots)
    cuda.calls.clear()
    block.read(*slots)
    assert cuda.calls.count("cudaStreamSynchronize") == 1
    assert "cudaMallocHost" not in cuda.calls, "pinned memory is slow to make, so it is kept"


def test_writing_waits_until_an_upload_has_left(device: Device) -> None:
    """The stand-in copies when somebody waits, so a write that didn't would show."""
    block, (floats, _) = _block(device)
    floats.of(block.host)[:] = 1
    block.upload()
    floats.of(block.host)[:] = 2
    assert (block.read(floats)[0] == 1).all()


def test_a_block_is_freed_once_after_the_work_on_it(cuda: Cuda, device: Device) -> None:
    before = cuda.live()
    block, slots = _block(device)
    block.upload()
    block.read(*slots)
    block.upload()
    block.close()
    block.close()
    assert cuda.live() == before
    with pytest.raises(MmgenError, match="freed"):
        block.read(slots[0])


def test_memory_that_is_not_there_says_how_much_is(device: Device) -> None:
    with pytest.raises(MmgenError, match=r"cudaMalloc failed: cudaErrorMemoryAllocation .*; ask for fewer") as raised:
        CudaBlock(device, 1 << 20, 9 << 30)
    assert (raised.value.got, raised.value.wanted) == ("8192.0 MiB free of 8192.0 MiB", "9217.0 MiB")
    block, (floats, _) = _block(device)  # and nothing is broken by it
    floats.of(block.host)[:] = 3
    block.upload()
    assert (block.read(floats)[0] == 3).all()


@pytest.mark.parametrize("status", [STATUS.cudaErrorUnknown, STATUS.cudaErrorMemoryAllocation])
def test_whichever_call_fails_everything_is_freed(cuda: Cuda, status: real.cudaError_t) -> None:
    def work() -> None:
        device = open_device()
        try:
            block, slots = _block(device)
            block.host[:] = 1
            block.upload()
            device.record([Copy(device)])()
            block.read(*slots)
            block.close()
        finally:
            device.close()

    cuda.calls.clear()
    work()
    calls = len(cuda.calls)
    failed = 0
    for call in range(1, calls + 1):
        cuda.fail("", status, call)
        try:
            work()
        except MmgenError as error:
            failed += 1
            assert status.name in str(error), error
        cuda.heal()
        gc.collect()
        assert cuda.live() == {}, f"after call {call}, {cuda.calls[-1]}"
    assert failed > calls / 2, "the others fail while freeing, where they are logged"


def test_a_device_that_broke_is_closed_without_hiding_why(cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    device = open_device()
    block, slots = _block(device)
    block.upload()
    cuda.fail_work(STATUS.cudaErrorIllegalAddress)
    with pytest.raises(MmgenError, match=r"cudaStreamSynchronize failed: cudaErrorIllegalAddress \(.+\); start"):
        try:
            block.read(*slots)
        finally:
            block.close()
            device.close()
    assert cuda.live() == {}
    assert [record.levelname for record in caplog.records] == ["WARNING"], "once, not for everything that is freed"


def test_every_thread_makes_the_device_its_own(cuda: Cuda, device: Device) -> None:
    block, slots = _block(device)
    block.upload()
    seen = []

    def elsewhere() -> None:
        cuda.calls.clear()
        block.read(*slots)
        seen.append(cuda.calls[0])

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["cudaSetDevice"]


def test_a_recording_runs_nothing_and_a_launch_runs_all(device: Device) -> None:
    copy = Copy(device)
    recorded = device.record([copy, copy.back])
    copy.source.array[:] = 7
    device.wait()
    assert (copy.result.array != 7).all()
    recorded()
    device.wait()
    assert (copy.result.array == 7).all()


def test_a_recording_is_of_this_thread_alone(device: Device) -> None:
    """Another thread may allocate memory meanwhile: other generators run in parallel."""
    copy, other = Copy(device), open_device()

    def allocate() -> None:
        thread = threading.Thread(target=lambda: other.memory(1000))
        thread.start()
        thread.join()

    device.record([copy, allocate])()
    device.wait()
    other.close()


def test_a_call_that_fails_ends_the_recording(cuda: Cuda, device: Device) -> None:
    copy = Copy(device)

    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        device.record([copy, broken])
    assert not {"Graph", "GraphExec"} & set(cuda.live())
    copy.check()


def test_a_call_that_waits_spoils_the_recording_and_nothing_else(device: Device) -> None:
    copy = Copy(device)
    for spoiling in (device.wait, lambda: device.memory(100)):
        with pytest.raises(MmgenError, match="cudaErrorStreamCapture"):
            device.record([copy, spoiling])
        copy.check()


def test_what_a_recording_runs_on_stays_as_long_as_it_does(cuda: Cuda, device: Device) -> None:
    before = cuda.live()
    recorded = device.record([Copy(device)])
    device.collect()
    recorded()
    del recorded
    device.collect()
    assert cuda.live() == before


def test_garbage_is_freed_between_recordings_and_after_the_work(cuda: Cuda, device: Device) -> None:
    """Python may collect at any time; CUDA forbids freeing in a recording."""
    copy = Copy(device)
    memory: list[object] = [device.memory(1000)]
    memory.append(memory)  # a cycle

    def collect() -> None:
        memory.clear()
        gc.collect()

    live = cuda.live()["device memory"]
    recorded = device.record([copy, collect])
    assert cuda.live()["device memory"] == live
    recorded()
    cuda.calls.clear()
    device.collect()
    order = [name for name in cuda.calls if name in ("cudaStreamSynchronize", "cudaFree")]
    assert order == ["cudaStreamSynchronize", "cudaFree"]


def test_a_device_nobody_closed_is_freed(cuda: Cuda) -> None:
    block, _ = _block(open_device())
    assert cuda.live()
    del block
    gc.collect()
    assert cuda.live() == {}


def test_a_closed_device_says_so(cuda: Cuda) -> None:
    device = open_device()
    device.close()
    device.close()
    with pytest.raises(MmgenError, match=re.escape("this CUDA device is closed; load the bundle again")):
        device.memory(100)


class Copy:
    """A call that copies to the device; events can't be recorded, so it is not a block's."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.memory, self.source, self.result = device.memory(300), device.pinned(300), device.pinned(300)

    def __call__(self) -> None:
        self._device.to_device(self.memory.address, self.source.address, 300)

    def back(self) -> None:
        self._device.to_host(self.result.address, self.memory.address, 300)

    def check(self) -> None:
        """The stream works."""
        self.source.array[:] += 1
        self()
        self.back()
        self._device.wait()
        np.testing.assert_array_equal(self.result.array, self.source.array)


def _block(device: Device) -> tuple[CudaBlock, tuple[Slot, Slot]]:
    """A block whose first part the host writes, and two slots of it."""
    layout = Layout()
    slots = layout.slot((2, 3)), layout.slot((3, 2), "int64")
    return CudaBlock(device, layout.bytes, 4096), slots
