"""A stand-in for ``cuda.bindings.runtime``: what our calls to CUDA mean, where there is no GPU.

Names, arguments, enumerations and handle types are the real module's; a call that it doesn't have fails the test.
Work on a stream is queued and runs only when something waits for it, so that a missing wait, a staging buffer written
too early or memory freed too soon shows as wrong data or as ``Misuse``.  It is slow and says nothing about speed.
"""

import ctypes
import threading
from typing import Any

import numpy as np
from cuda.bindings import runtime as real
from standin_device import OK, Device, Failed, Status, gives
from standin_streams import Capture, Event, Graph, GraphExec, Stream, Work

_H2D, _D2H, _D2D, _DEFAULT = (
    getattr(real.cudaMemcpyKind, f"cudaMemcpy{kind}")
    for kind in ("HostToDevice", "DeviceToHost", "DeviceToDevice", "Default")
)
_SIDES = {_H2D: ("device", "host"), _D2H: ("host", "device"), _D2D: ("device", "device")}  # to, from


class Cuda(Device):
    """The calls, named as CUDA names them; each returns what follows the status."""

    @gives(1)
    def cudaGetDeviceCount(self) -> Any:
        return (1,)

    @gives(1)
    def cudaGetDevice(self) -> Any:
        return (getattr(self.thread, "device", 0),)

    @gives(0)
    def cudaSetDevice(self, device: int) -> Any:
        if device != 0:
            raise Failed(Status.cudaErrorInvalidDevice)
        self.thread.device = device
        return ()

    @gives(0)
    def cudaGetLastError(self) -> Any:
        status, self.last = self.last, OK
        raise Failed(status)

    @gives(0)
    def cudaPeekAtLastError(self) -> Any:
        raise Failed(self.last)

    @gives(1)
    def cudaDriverGetVersion(self) -> Any:
        return (self.gpu.driver if self.gpu else 0,)

    @gives(1)
    def cudaRuntimeGetVersion(self) -> Any:
        return (12060,)

    @gives(1)
    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> Any:
        assert self.gpu is not None
        values = {
            "ComputeCapabilityMajor": self.gpu.compute_capability[0],
            "ComputeCapabilityMinor": self.gpu.compute_capability[1],
            "MultiProcessorCount": self.gpu.multiprocessors,
            "Integrated": int(self.gpu.integrated),
            "CanMapHostMemory": 1,
            "UnifiedAddressing": 1,
        }
        name = attr.name.removeprefix("cudaDevAttr")
        if name not in values:
            raise self.memory.misuse(f"the stand-in has no device attribute {attr.name}")
        return (values[name],)

    @gives(1)
    def cudaGetDeviceProperties(self, device: int) -> Any:
        assert self.gpu is not None
        found = real.cudaDeviceProp()
        found.name, found.totalGlobalMem = self.gpu.name.encode().ljust(256, b"\0"), self.gpu.memory
        found.major, found.minor = self.gpu.compute_capability
        found.multiProcessorCount, found.integrated = self.gpu.multiprocessors, int(self.gpu.integrated)
        return (found,)

    @gives(2)
    def cudaMemGetInfo(self) -> Any:
        assert self.gpu is not None
        return self.free_bytes, self.gpu.memory

    @gives(1, unsafe=True)
    def cudaMalloc(self, size: int) -> Any:
        return (self._allocate("device", size),)

    @gives(1, unsafe=True)
    def cudaMallocHost(self, size: int) -> Any:
        return (self._allocate("host", size),)

    @gives(1, unsafe=True)
    def cudaHostAlloc(self, size: int, flags: int) -> Any:
        return (self._allocate("host", size),)

    @gives(1)
    def cudaHostGetDevicePointer(self, pHost: int, flags: int) -> Any:
        self.memory.view(pHost, 0, "cudaHostGetDevicePointer", ["host"])
        return (pHost,)  # unified addressing

    @gives(0, unsafe=True, releases=True)
    def cudaFree(self, devPtr: int) -> Any:
        return self._release("device", devPtr)

    @gives(0, unsafe=True, releases=True)
    def cudaFreeHost(self, ptr: int) -> Any:
        return self._release("host", ptr)

    def _allocate(self, kind: Any, size: int) -> int:
        if size == 0:
            return 0
        if kind == "device" and size > self.free_bytes:
            raise Failed(Status.cudaErrorMemoryAllocation)
        return self.memory.allocate(kind, size)

    def _release(self, kind: Any, address: int) -> Any:
        if address and not self.memory.free(kind, address):
            raise self.memory.misuse(f"{address:#x} is freed and isn't the start of {kind} memory")
        return ()

    @gives(0)
    def cudaMemcpyAsync(self, dst: Any, src: Any, count: int, kind: Any, stream: Any) -> Any:
        self._copy(dst, src, count, kind, self.stream(stream))
        return ()

    def _copy(self, dst: Any, src: Any, count: int, kind: Any, on: Stream) -> None:
        """Page-locked memory is read and written when the work runs; other memory of the host as CUDA documents."""
        to, source = _address(dst), _address(src)
        found = [self.memory.find(address) for address in (to, source)]
        if kind == _DEFAULT:
            to_side, source_side = ("host" if f is None else f.kind for f in found)
        else:
            to_side, source_side = _SIDES[kind]
        to_pageable = found[0] is None and to_side == "host"
        source_pageable = found[1] is None and source_side == "host"
        if (to_pageable or source_pageable) and on.capture is not None:
            raise self.memory.misuse("a copy of pageable memory is captured")

        def target(when: str) -> Any:
            return _pageable(to, count) if to_pageable else self.memory.view(to, count, f"copy to{when}", [to_side])

        def given(when: str) -> Any:
            if source_pageable:
                return _pageable(source, count)
            return self.memory.view(source, count, f"copy from{when}", [source_side])

        target(""), given("")
        staged = given("").copy() if source_pageable else None

        def run(_alive: Any = (dst, src)) -> None:
            target(", as it runs")[:] = given(", as it runs") if staged is None else staged

        on.push(Work(f"copy {count} bytes", run))
        if to_pageable:
            self.run(on, on.pushed)

    @gives(0)
    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Any) -> Any:
        self.memory.view(devPtr, count, "memset", ["device", "host"])

        def run() -> None:
            self.memory.view(devPtr, count, "memset, as it runs", ["device", "host"])[:] = value & 0xFF

        self.enqueue(int(stream), f"memset {count} bytes", run)
        return ()

    @gives(1)
    def cudaStreamCreate(self) -> Any:
        return (real.cudaStream_t(self.add(Stream())),)

    @gives(1)
    def cudaStreamCreateWithFlags(self, flags: int) -> Any:
        return (real.cudaStream_t(self.add(Stream())),)

    @gives(0, releases=True)
    def cudaStreamDestroy(self, stream: Any) -> Any:
        found = self.remove(stream, Stream)
        if found.capture is not None:
            raise self.memory.misuse("a stream is destroyed while it is being captured")
        self.run(found, found.pushed)  # CUDA ends the work first and returns before
        return ()

    @gives(0)
    def cudaStreamSynchronize(self, stream: Any) -> Any:
        found = self.stream(stream)
        if found.capture is not None:
            found.capture.invalid = True
            raise Failed(Status.cudaErrorStreamCaptureUnsupported)
        self.run(found, found.pushed)
        return ()

    @gives(0)
    def cudaStreamQuery(self, stream: Any) -> Any:
        found = self.stream(stream)
        if found.capture is not None:
            found.capture.invalid = True
            raise Failed(Status.cudaErrorStreamCaptureUnsupported)
        self._look(found, found.pushed)
        return ()

    @gives(0, unsafe=True)
    def cudaDeviceSynchronize(self) -> Any:
        for thing in list(self.handles.values()):
            if isinstance(thing, Stream):
                self.run(thing, thing.pushed)
        return ()

    def _look(self, stream: Stream, until: int) -> None:
        """Time passes between two looks."""
        if stream.done < until:
            self.run(stream, stream.done + 1)
        if stream.done < until:
            raise Failed(Status.cudaErrorNotReady)

    @gives(0)
    def cudaStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> Any:
        found, waits = self.stream(stream), self.get(event, Event)
        if found.capture is not None or waits.captured:
            raise self.memory.misuse("the stand-in doesn't capture several streams")
        if waits.stream is not None:
            other, until = waits.stream, waits.until
            found.push(Work("wait for an event", lambda: self.run(other, until), counts=False))
        return ()

    @gives(1)
    def cudaEventCreate(self) -> Any:
        return (real.cudaEvent_t(self.add(Event(timed=True))),)

    @gives(1)
    def cudaEventCreateWithFlags(self, flags: int) -> Any:
        return (real.cudaEvent_t(self.add(Event(timed=not flags & real.cudaEventDisableTiming))),)

    @gives(0, releases=True)
    def cudaEventDestroy(self, event: Any) -> Any:
        self.remove(event, Event)
        return ()

    @gives(0)
    def cudaEventRecord(self, event: Any, stream: Any) -> Any:
        self.get(event, Event).record(self.stream(stream))
        return ()

    @gives(0, unsafe=True)
    def cudaEventSynchronize(self, event: Any) -> Any:
        found = self.get(event, Event)
        if found.captured:
            raise Failed(Status.cudaErrorCapturedEvent)
        if found.stream is not None:
            self.run(found.stream, found.until)
        return ()

    @gives(0, unsafe=True)
    def cudaEventQuery(self, event: Any) -> Any:
        found = self.get(event, Event)
        if found.captured:
            raise Failed(Status.cudaErrorCapturedEvent)
        if found.stream is not None:
            self._look(found.stream, found.until)
        return ()

    @gives(1)
    def cudaEventElapsedTime(self, start: Any, end: Any) -> Any:
        events = [self.get(start, Event), self.get(end, Event)]
        if not all(e.timed and e.stream is not None for e in events):
            raise Failed(Status.cudaErrorInvalidResourceHandle)
        if not all(e.stream.done >= e.until for e in events):
            raise Failed(Status.cudaErrorNotReady)
        return ((events[1].time - events[0].time) * 1e3,)

    @gives(0)
    def cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:
        found = self.stream(stream)
        if found.capture is not None:
            raise Failed(Status.cudaErrorIllegalState)
        found.capture = Capture(mode.name.removeprefix("cudaStreamCaptureMode"), threading.get_ident())
        return ()

    @gives(1)
    def cudaStreamEndCapture(self, stream: Any) -> Any:
        found = self.stream(stream)
        capture = found.capture
        if capture is None:
            raise Failed(Status.cudaErrorIllegalState)
        if capture.mode != "Relaxed" and capture.thread != threading.get_ident():
            raise Failed(Status.cudaErrorStreamCaptureWrongThread)
        found.capture = None
        if capture.invalid:
            raise Failed(Status.cudaErrorStreamCaptureInvalidated)
        return (real.cudaGraph_t(self.add(Graph(tuple(capture.works)))),)

    @gives(1)
    def cudaStreamIsCapturing(self, stream: Any) -> Any:
        capture = self.stream(stream).capture
        name = "None" if capture is None else "Invalidated" if capture.invalid else "Active"
        return (getattr(real.cudaStreamCaptureStatus, f"cudaStreamCaptureStatus{name}"),)

    @gives(1)
    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return (real.cudaGraphExec_t(self.add(GraphExec(self.get(graph, Graph).works))),)

    @gives(0)
    def cudaGraphUpload(self, graphExec: Any, stream: Any) -> Any:
        self.get(graphExec, GraphExec)
        self.stream(stream)
        return ()

    @gives(0)
    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> Any:
        launched, on = self.get(graphExec, GraphExec), self.stream(stream)
        for work in launched.works:
            on.push(work)
        if on.capture is None:
            launched.on, launched.until = on, on.pushed
        return ()

    @gives(0, releases=True)
    def cudaGraphExecDestroy(self, graphExec: Any) -> Any:
        if self.remove(graphExec, GraphExec).busy:
            raise self.memory.misuse("a graph is destroyed before its launch is done")
        return ()

    @gives(0, releases=True)
    def cudaGraphDestroy(self, graph: Any) -> Any:
        self.remove(graph, Graph)
        return ()


def _address(value: Any) -> int:
    """Of a pointer or a buffer."""
    return int(value) if isinstance(value, (int, np.integer)) else np.frombuffer(value, np.uint8).ctypes.data


def _pageable(address: int, count: int) -> Any:
    """Memory of the host that CUDA doesn't know, and that can't be checked."""
    return np.frombuffer((ctypes.c_uint8 * count).from_address(address), np.uint8)
