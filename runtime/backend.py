"""The seam between the loop and what executes graphs: memory that stays where it is, and calls bound to it.

A backend's module has one function, ``open_backend``.  The loop owns the memory of a request, one block; a bound call
reads and writes it in place and returns nothing.  Calls run in the order in which they were made; on a GPU they only
enqueue, and ``Block.read`` and ``Backend.wait`` are where the host waits.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.bundle import Bundle, Role
from mmgen.runtime.choices import chosen
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.memory import Slot
from mmgen.runtime.numbers import whole

ON_GPU = ("tensorrt", "tensorrt-rtx", "ort-cuda")
AUTO = (*ON_GPU, "openvino", "ort-cpu")  # in the order in which ``auto`` tries them
MOST_THREADS = 1024
NAMES = (*AUTO, "openvino-bf16", "ort-cpu-int8")  # which lose digits that a bundle may need: only if asked for

log = logging.getLogger("mmgen")
Call = Callable[[], None]


class Block(Protocol):
    """Memory of a request.  The host writes its first bytes and uploads them; graphs write the rest."""

    @property
    def host(self) -> NDArray[np.uint8]:
        """The bytes to write in; waits until an upload under way has left them."""
        ...

    def upload(self, end: int | None = None) -> None:
        """Make what was written visible to the calls that follow: the first ``end`` bytes; None: all of them."""
        ...

    def read(self, *slots: Slot) -> tuple[NDArray[Any], ...]:
        """Copies on the host, after everything enqueued before."""
        ...

    def close(self) -> None:
        """Free the memory, after everything enqueued before; closing twice does no harm."""
        ...


class Runner(Protocol):
    """One graph of a bundle, loaded."""

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        """Calls that run the graph on slots of a block, inputs and outputs by name.

        All calls have the same shapes and share what the graph needs for them; it lives as long as one of the calls.
        A call must not be made after its block or the runner was closed.

        Raises:
            MmgenError: shapes that the graph can't run, naming the axis and its range.
        """
        ...

    def close(self) -> None: ...


class Backend(Protocol):
    """Memory and graphs of one device.  Used by one thread at a time."""

    name: str

    def block(self, host_bytes: int, other_bytes: int) -> Block: ...
    def runner(self, bundle: Bundle, role: Role) -> Runner: ...

    def record(self, calls: Sequence[Call]) -> Call | None:
        """One call that makes all of these without the host in between, or None where there is no such thing.

        It is valid as long as the calls and their block are.  Some of the calls may be made while recording.
        """
        ...

    def wait(self) -> None:
        """Return when everything enqueued is done."""
        ...

    def close(self) -> None: ...


def open_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """Open a backend for a bundle; ``auto`` takes the first that works here and logs why those before it don't.

    Args:
        name: ``auto`` or one of ``NAMES``.
        bundle: what it is to run; a TensorRT backend needs engines of it.
        threads: of a CPU backend; None: one a core.

    Raises:
        MmgenError: as ``check_backend``, or it can't be had here; never another one in its place.
    """
    threads = check_backend(name, threads)
    if name != "auto":
        return _open(name, bundle, threads)
    reasons = []
    *candidates, last = candidates_for(bundle)
    for candidate in candidates:
        try:
            backend = _open(candidate, bundle, threads)
        except MmgenError as error:
            reasons.append(f"{candidate}: {error}")
        else:
            log.info("backend %s", candidate)
            return backend
    backend = _open(last, bundle, threads)
    # Nobody who has a GPU should find out from the clock that it isn't used.
    level = logging.WARNING if reasons and _has_gpu() else logging.INFO
    log.log(level, "backend %s", "; not ".join((backend.name, *reasons)))
    return backend


def check_backend(name: object, threads: object) -> int | None:
    """See that there is a backend of a name; returns the number of threads.

    Raises:
        MmgenError: unknown name; no whole number, below 1, or more than libraries should be told to start.
    """
    chosen("backend", name, ("auto", *NAMES))
    return None if threads is None else whole("threads", threads, "a whole number, at least 1", 1, MOST_THREADS)


def candidates_for(bundle: Bundle) -> tuple[str, ...]:
    """What ``auto`` tries, in this order.

    A bundle for CPUs alone has been compared with torch on ONNX Runtime, and uses operators that others may not have or
    compute as something else: OpenVINO 2026.4 does with Fourier transforms.
    """
    return AUTO[-1:] if bundle.cpu_only else AUTO


def _has_gpu() -> bool:
    from mmgen.runtime.cuda import open_device

    try:
        open_device().close()
    except MmgenError:
        return False
    return True


def _open(name: str, bundle: Bundle, threads: int | None) -> Backend:
    match name:
        case "tensorrt" | "tensorrt-rtx":
            from mmgen.runtime import tensorrt

            return tensorrt.open_backend(name, bundle)
        case "ort-cuda":
            from mmgen.runtime import ort_cuda

            return ort_cuda.open_backend()
        case "openvino" | "openvino-bf16":
            from mmgen.runtime import openvino

            return openvino.open_backend(name, bundle, threads)
        case "ort-cpu" | "ort-cpu-int8":
            from mmgen.runtime import ort

            return ort.open_backend(name, threads)
    raise AssertionError(f"backend {name!r}, which was not checked")
