"""CUDA as the backends need it: a device with one stream, memory, copies, and recorded graphs of calls.

Every status is checked, and a failure is an ``MmgenError`` that names the call.  Whatever is allocated is freed once:
by ``Device.release``, some time after its last reference is gone, or with the device.  Simulated, not run on a device:
statuses and signatures are those of NVIDIA's bindings, whose calls fail on a machine without a driver.
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import ALIGNMENT
from mmgen.runtime.backends.protocol import Call
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.fork import check_forked, claim

CONTAINER = "in a container start it with --gpus all, on a Jetson with --runtime nvidia"
NO_DRIVER = "no NVIDIA driver is on this machine"

log = logging.getLogger("mmgen")


@dataclass(frozen=True, eq=False)
class Memory:
    """Device memory, aligned to at least 256 bytes."""

    address: int
    bytes: int


@dataclass(frozen=True, eq=False)
class Pinned:
    """Host memory that the device copies from and to directly."""

    address: int
    bytes: int

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "data": (self.address, False), "shape": (self.bytes,), "typestr": "|u1"}

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, as a view that keeps them from being collected."""
        return np.asarray(self)


@dataclass(frozen=True, eq=False)
class Event:
    """A position in the stream that the host can wait for; a timed one also knows when it was reached."""

    handle: Any


class Device:
    """A GPU and one stream of it.  Used by one thread at a time, whichever that is."""

    def __init__(self, runtime: Any, index: int) -> None:
        self._runtime = runtime
        self._held: dict[weakref.ref[object], Callable[[], object]] = {}  # in order of allocation
        self._complained = False
        self._stream: Any = None
        self._closed = False
        self.index = index
        claim("CUDA")
        try:
            self.use()
            self._call("cudaFree", 0)  # creates the device's context, where cudaSetDevice didn't
            facts = self._call("cudaGetDeviceProperties", index)
            self.name: str = facts.name.decode(errors="replace").rstrip("\0")
            self.compute_capability = f"sm{facts.major}{facts.minor}"
            self.multiprocessors: int = facts.multiProcessorCount
            self.memory_bytes: int = facts.totalGlobalMem
            self.driver_cuda = _version(self._call("cudaDriverGetVersion"))
            # With cudaStreamNonBlocking, work that others enqueue on the default stream isn't ordered with ours.
            self._stream = self._call("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking)
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """The stream's handle, for libraries that enqueue on it."""
        return int(self._stream)

    def free_bytes(self) -> int:
        """Return how much memory is free now; a Jetson's is shared with the host."""
        self.use()
        free, _ = self._call("cudaMemGetInfo")
        return int(free)

    def use(self) -> None:
        """Make this the device of the calling thread, as every thread that calls CUDA or TensorRT must."""
        if self._closed:
            raise MmgenError("this CUDA device is closed", remedy="load the bundle again")
        self._call("cudaSetDevice", self.index)

    def memory(self, size: int) -> Memory:
        """Allocate device memory of ``size`` bytes, uninitialized.

        Raises:
            MmgenError: there isn't enough; says how much there is.
        """
        self.collect()
        size = max(size, ALIGNMENT)  # for 0 CUDA returns a null pointer
        address = int(self._call("cudaMalloc", size, requested=size))
        memory = Memory(address, size)
        self.hold(memory, lambda: self._call("cudaFree", address))
        return memory

    def pinned(self, size: int) -> Pinned:
        """Allocate pinned host memory of ``size`` bytes, uninitialized."""
        self.collect()
        size = max(size, ALIGNMENT)
        address = int(self._call("cudaMallocHost", size, requested=size))
        pinned = Pinned(address, size)
        self.hold(pinned, lambda: self._call("cudaFreeHost", address))
        return pinned

    def event(self, *, timed: bool = False) -> Event:
        """Create an event; waiting for it before ``mark`` returns at once.  One that isn't timed costs less."""
        self.use()
        flags = self._runtime.cudaEventDefault if timed else self._runtime.cudaEventDisableTiming
        handle = self._call("cudaEventCreateWithFlags", flags)
        event = Event(handle)
        self.hold(event, lambda: self._call("cudaEventDestroy", handle))
        return event

    def mark(self, event: Event) -> None:
        """Move an event to the end of what is enqueued."""
        self._call("cudaEventRecord", event.handle, self._stream)

    def wait(self, event: Event | None = None) -> None:
        """Wait until what is enqueued is done, or what was when the event was marked.

        Raises:
            MmgenError: some of it failed; usually the process must be started again.
        """
        self.use()
        if event is None:
            self._call("cudaStreamSynchronize", self._stream)
        else:
            self._call("cudaEventSynchronize", event.handle)

    def seconds(self, start: Event, end: Event) -> float:
        """Time on the device from one timed event to another, both marked and reached."""
        self.use()
        return float(self._call("cudaEventElapsedTime", start.handle, end.handle)) / 1000  # it is in milliseconds

    def to_device(self, to: int, source: int, size: int) -> None:
        """Enqueue a copy from pinned memory."""
        self.use()
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, self._stream)

    def to_host(self, to: int, source: int, size: int) -> None:
        """Enqueue a copy to pinned memory."""
        self.use()
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", to, source, size, kind, self._stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """Enqueue a copy within the device's memory."""
        self.use()
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpyAsync", to, source, size, kind, self._stream)

    def record(self, calls: Sequence[Call]) -> Call:
        """Record what these calls enqueue as one call, which keeps them alive.

        Nothing runs now.  Each call must have run before, or a library may still have work to do that can't be
        recorded.

        Raises:
            MmgenError: CUDA can't record it.  The stream works as before.
            Exception: raised by a call; likewise.
        """
        self.use()
        # The thread's own mode: in the global one, another thread that allocates memory would break the recording.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            for call in calls:
                call()
        except BaseException:
            self._abandon()
            raise
        graph = self._call("cudaStreamEndCapture", self._stream)
        try:
            executable = self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._quietly(lambda: self._call("cudaGraphDestroy", graph))
        recorded = Recorded(self, executable, tuple(calls))
        self.hold(recorded, lambda: self._call("cudaGraphExecDestroy", executable))
        self._call("cudaGraphUpload", executable, self._stream)
        return recorded

    def launch(self, executable: Any) -> None:
        """Enqueue recorded calls."""
        self.use()
        self._call("cudaGraphLaunch", executable, self._stream)

    def hold(self, owner: object, free: Callable[[], object]) -> None:
        """Call ``free`` once: when ``owner`` is released, has been collected, or the device is closed.

        It is never called from Python's garbage collector, which may run in the middle of a recording.
        """
        self._held[weakref.ref(owner)] = free

    def release(self, *owners: object) -> None:
        """Free what these own, after everything enqueued before; what is freed already is skipped."""
        self._free([ref for owner in owners if (ref := weakref.ref(owner)) in self._held])

    def collect(self) -> None:
        """Free what has no references any more, after everything enqueued before."""
        self.use()
        self._free([ref for ref in self._held if ref() is None])

    def close(self) -> None:
        """Free everything, after everything enqueued before; closing twice does no harm.

        Failures are logged: the device's own failure was raised where it happened.
        """
        if self._closed:
            return
        self._free(list(self._held), regardless=True)
        if self._stream is not None:
            self._quietly(lambda: self._call("cudaStreamDestroy", self._stream))
        self._closed = True

    def __del__(self) -> None:
        with suppress(Exception):  # partly constructed, or the interpreter is shutting down
            self.close()

    def _free(self, refs: list[weakref.ref[object]], regardless: bool = False) -> None:
        """Wait for the device and free; if waiting fails, leave it to ``close``."""
        if not refs:
            return
        self._quietly(self.use)
        if not self._quietly(lambda: self._call("cudaStreamSynchronize", self._stream)) and not regardless:
            return
        frees = [self._held.pop(ref) for ref in refs]
        for free in reversed(frees):  # what was allocated last may need what was allocated before
            self._quietly(free)

    def _abandon(self) -> None:
        """End a recording that won't be used, so that the stream runs work again."""
        _, graph = self._runtime.cudaStreamEndCapture(self._stream)
        if graph is not None and int(graph):
            self._runtime.cudaGraphDestroy(graph)

    def _quietly(self, call: Callable[[], object]) -> bool:
        """Make a call that frees something; return whether it succeeded."""
        try:
            call()
        except MmgenError as error:  # after a failure of the device, each call repeats it
            log.log(logging.DEBUG if self._complained else logging.WARNING, "while freeing: %s", str(error))
            self._complained = True
            return False
        return True

    def _call(self, name: str, *arguments: Any, requested: int | None = None) -> Any:
        """Call a function of CUDA's runtime API, check its status, and return its value or values."""
        status, *values = getattr(self._runtime, name)(*arguments)
        if int(status):
            raise self._error(name, status, requested)
        return values[0] if len(values) == 1 else tuple(values)

    def _error(self, name: str, status: Any, requested: int | None) -> MmgenError:
        runtime = self._runtime
        what = f"{name} failed: {_described(runtime, status)}"
        if status == runtime.cudaError_t.cudaErrorMemoryAllocation:
            unknown, free, total = runtime.cudaMemGetInfo()
            return MmgenError(
                what,
                got=None if int(unknown) else f"{_mib(free)} free of {_mib(total)}",
                wanted=_mib(requested) if requested else None,
                remedy="ask for fewer samples at once, or close other programs",
            )
        return MmgenError(what, remedy="start the program again; mmgen doctor describes this machine")


class Recorded:
    """Calls as one CUDA graph, which replays the addresses that they had."""

    def __init__(self, device: Device, executable: Any, calls: tuple[Call, ...]) -> None:
        self._device, self._executable = device, executable
        self._calls = calls  # keeps alive the memory that it runs on

    def __call__(self) -> None:
        self._device.launch(self._executable)


def open_device(index: int = 0) -> Device:
    """Open a GPU.

    Raises:
        MmgenError: CUDA's bindings aren't installed, no driver or one too old for them, no such device, or a process
            that was forked from one that used CUDA.
    """
    check_forked("CUDA")
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MmgenError(
            "Python's bindings of CUDA are not installed",
            got=None if isinstance(error, ModuleNotFoundError) else error,
            remedy="pip install 'cuda-bindings>=12.6,<13' for a driver with CUDA 12, cuda-bindings for a later one",
        ) from error
    try:
        status, count = runtime.cudaGetDeviceCount()
    except RuntimeError as error:  # of cuda-bindings 12.8, whose later releases return a status
        raise MmgenError(NO_DRIVER, got=error, remedy=f"install one; {CONTAINER}") from error
    if status == runtime.cudaError_t.cudaErrorInsufficientDriver:
        raise _driver_error(runtime)
    if status == runtime.cudaError_t.cudaErrorNoDevice or not (int(status) or count):
        raise MmgenError("no CUDA device is visible", remedy=f"look at CUDA_VISIBLE_DEVICES; {CONTAINER}")
    if int(status):
        raise MmgenError(
            f"cudaGetDeviceCount failed: {_described(runtime, status)}",
            remedy="restart the machine if its driver was updated; mmgen doctor describes it",
        )
    if not 0 <= index < count:
        raise MmgenError("CUDA device", got=index, wanted=f"less than {count}")
    return Device(runtime, index)


def _driver_error(runtime: Any) -> MmgenError:
    """Make the error of a missing driver or one too old, for which CUDA's status is the same."""
    driver, needed = runtime.cudaDriverGetVersion()[1], runtime.cudaRuntimeGetVersion()[1]
    if not driver:
        return MmgenError(NO_DRIVER, remedy=f"install one; {CONTAINER}")
    return MmgenError(
        "CUDA of the NVIDIA driver",
        got=_version(driver),
        wanted=f"{_version(needed)} or later",
        remedy=f"update the driver, or pip install 'cuda-bindings<{needed // 1000}'",
    )


def _described(runtime: Any, status: Any) -> str:
    _, text = runtime.cudaGetErrorString(status)
    return f"{status.name} ({text.decode(errors='replace')})"


def _version(number: int) -> str:
    """Write a version, ``12.6`` for 12060."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
