"""The stand-in GPU: what it is, what lives on it, how a call to it is made and made to fail."""

import collections
import functools
import inspect
import re
import sys
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from cuda.bindings import runtime as real
from standin_memory import Memory
from standin_streams import Capture, Stream, Work

Status = real.cudaError_t
OK = Status.cudaSuccess
# After these nothing works in this process any more.
STICKY = {
    Status.cudaErrorIllegalAddress,
    Status.cudaErrorLaunchFailure,
    Status.cudaErrorMisalignedAddress,
    Status.cudaErrorHardwareStackError,
    Status.cudaErrorAssert,
}


class Failed(Exception):
    """A call answers with this status."""

    def __init__(self, status: Status) -> None:
        self.status = status


def gives(outputs: int, *, unsafe: bool = False, releases: bool = False) -> Callable[[Any], Any]:
    """Mark a call of the API.

    Args:
        outputs: how many values it returns beside the status.
        unsafe: a thread that captures may not make it, in any mode but relaxed.
        releases: made to fail, it still releases what it was asked to: it reports an earlier failure.
    """

    def mark(function: Any) -> Any:
        function.outputs, function.unsafe, function.releases = outputs, unsafe, releases
        return function

    return mark


@dataclass(frozen=True)
class Gpu:
    """What the device says of itself."""

    name: str = "Orin"
    compute_capability: tuple[int, int] = (8, 7)
    multiprocessors: int = 8
    memory: int = 8 << 30
    driver: int = 12060
    integrated: bool = True


@dataclass
class Device:
    """One GPU, or none with ``gpu=None``; a class derived from it has the calls, and ``module`` offers them."""

    gpu: Gpu | None = field(default_factory=Gpu)
    missing: Status = Status.cudaErrorInsufficientDriver  # the answer where there is no GPU
    memory: Memory = field(default_factory=Memory)
    calls: list[str] = field(default_factory=list)  # every call's name, in order
    reserved: int = 0  # bytes of the device that libraries took

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.last, self.sticky = OK, OK
        self.thread = threading.local()
        self.handles: dict[int, Any] = {}
        self._next = 0x1000
        self._faults: dict[str, collections.deque[Status | None]] = {}  # by name; "" for any call
        self._work_faults: collections.deque[Status | None] = collections.deque()
        self.module = self._module()

    # For tests.

    def live(self) -> dict[str, int]:
        """How many of each thing there are, without the zeros."""
        kinds = collections.Counter(type(handle).__name__ for handle in self.handles.values())
        kinds["device memory"] = len(self.memory.live("device"))
        kinds["host memory"] = len(self.memory.live("host"))
        kinds["reserved bytes"] = self.reserved
        return {kind: number for kind, number in kinds.items() if number}

    def fail(self, name: str, status: Status, call: int = 1) -> None:
        """Make the ``call``-th next call of a function fail; ``name`` "" counts all calls."""
        self._faults[name] = collections.deque([*[None] * (call - 1), status])

    def fail_work(self, status: Status, work: int = 1) -> None:
        """Make the ``work``-th next piece of queued work fail while it runs."""
        self._work_faults = collections.deque([*[None] * (work - 1), status])

    def heal(self) -> None:
        """Forget faults that didn't strike."""
        self._faults.clear()
        self._work_faults.clear()

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the real module until the test ends."""
        import cuda.bindings

        patch.setitem(sys.modules, "cuda.bindings.runtime", self.module)
        patch.setattr(cuda.bindings, "runtime", self.module)

    # For the calls, and for libraries that use the device.

    @property
    def ready(self) -> bool:
        """Whether there is a device that works."""
        return self.gpu is not None and self.sticky == OK

    @property
    def free_bytes(self) -> int:
        assert self.gpu is not None
        return self.gpu.memory - self.reserved - sum(a.size for a in self.memory.live("device"))

    def reserve(self, size: int) -> bool:
        """Take memory of the device for a library; a negative size gives it back."""
        if size > 0 and size > self.free_bytes:
            return False
        self.reserved += size
        return True

    def stream(self, handle: Any) -> Stream:
        """A live stream that isn't the default one."""
        if int(handle) in (0, 1, 2):
            raise self.memory.misuse("the default stream is used: it waits for other streams; make one of your own")
        found: Stream = self.get(handle, Stream)
        return found

    def enqueue(self, stream: int, label: str, run: Callable[[], None]) -> None:
        """Queue work; it is recorded where the stream is being captured."""
        self.stream(stream).push(Work(label, run))

    def run(self, stream: Stream, until: int) -> None:
        """Run queued work up to a number of it."""
        while stream.done < until:
            work = stream.queue.popleft()
            stream.done += 1
            status = self._work_faults.popleft() if self._work_faults and work.counts else None
            if status is not None:
                self._break(status)
                raise Failed(status)
            work.run()

    def capture(self) -> Capture | None:
        """A capture that forbids unsafe calls to this thread."""
        me = threading.get_ident()
        captures = [h.capture for h in self.handles.values() if isinstance(h, Stream) and h.capture is not None]
        forbid = [c for c in captures if c.mode == "Global" or (c.mode == "ThreadLocal" and c.thread == me)]
        return forbid[0] if forbid else None

    def add(self, thing: Any) -> int:
        """A handle for it."""
        self._next += 8
        self.handles[self._next] = thing
        return self._next

    def get(self, handle: Any, kind: type) -> Any:
        thing = self.handles.get(int(handle))
        if not isinstance(thing, kind):
            raise self.memory.misuse(f"{int(handle):#x} is no live {kind.__name__}")
        return thing

    def remove(self, handle: Any, kind: type) -> Any:
        thing = self.get(handle, kind)
        del self.handles[int(handle)]
        return thing

    def _break(self, status: Status) -> None:
        """After a sticky error, queued work never runs and captures are over."""
        if status not in STICKY:
            return
        self.sticky = status
        for handle in self.handles.values():
            if isinstance(handle, Stream):
                handle.done = handle.pushed
                handle.queue.clear()
                handle.capture = None

    # How a call is made.

    def _module(self) -> types.ModuleType:
        module = types.ModuleType("cuda.bindings.runtime", __doc__)

        def attribute(name: str) -> Any:
            if not hasattr(real, name):
                raise AttributeError(f"module 'cuda.bindings.runtime' has no attribute {name!r}")
            thing = getattr(real, name)
            if not callable(thing) or inspect.isclass(thing) or name in ("cudaGetErrorName", "cudaGetErrorString"):
                return thing
            if not hasattr(type(self), name):
                raise self.memory.misuse(f"the stand-in has no {name}")
            return functools.partial(self._call, name)

        module.__getattr__ = attribute  # type: ignore[method-assign]
        return module

    def _call(self, name: str, *args: Any, **named: Any) -> tuple[Any, ...]:
        function = getattr(type(self), name)
        values = self._arguments(name, args, named)
        with self.lock:
            self.calls.append(name)
            status, results = self._answer(name, function, values)
            if status != OK and name not in ("cudaGetLastError", "cudaPeekAtLastError"):
                self.last = status
            return (status, *results)

    def _answer(self, name: str, function: Any, values: list[Any]) -> tuple[Status, tuple[Any, ...]]:
        nothing = (None,) * function.outputs
        if self.gpu is None and name not in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
            return self.missing, nothing
        if function.unsafe and (capture := self.capture()) is not None:
            capture.invalid = True
            return Status.cudaErrorStreamCaptureUnsupported, nothing
        injected = self._fault(name)
        if injected is not None:
            self._break(injected)
            if name == "cudaStreamEndCapture":  # it ends, whatever comes of it
                self.stream(values[0]).capture = None
        status = injected or (self.sticky if self.sticky != OK else None)
        results = nothing
        if status is None or function.releases:
            try:
                results = function(self, *values)
            except Failed as failed:
                return failed.status, nothing
        return (OK, results) if status is None else (status, nothing)

    def _fault(self, name: str) -> Status | None:
        found = [queue.popleft() for key in (name, "") if (queue := self._faults.get(key))]
        return next((status for status in found if status is not None), None)

    def _arguments(self, name: str, args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """In the real function's order; it takes all of them, and enumerations where it says so."""
        parameters = signature(name)
        rest = list(parameters)[len(args) :]
        if len(args) > len(parameters) or set(named) != set(rest):
            raise self.memory.misuse(f"{name}({', '.join(parameters)}) is called with {args} {named}")
        given = {**dict(zip(parameters, args, strict=False)), **named}
        for parameter, kind in parameters.items():
            if kind and not isinstance(given[parameter], getattr(real, kind)):
                raise self.memory.misuse(f"{name}: {parameter} is {given[parameter]!r}, wanted a {kind}")
        return [given[parameter] for parameter in parameters]


@functools.cache
def signature(name: str) -> dict[str, str]:
    """Parameters of a real function, each with its enumeration or "", from the first line of its documentation."""
    line = getattr(real, name).__doc__.splitlines()[0]
    inside = re.fullmatch(rf"{name}\((.*)\)", line)
    assert inside, line
    found = {}
    for part in filter(None, inside[1].split(", ")):
        before, _, kind = part.partition(": ")
        found[before.split()[-1]] = kind
    return found
