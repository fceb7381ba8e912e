"""Backends by name, and the order in which ``auto`` tries them.

A backend's module has a function ``open_backend(name, bundle, threads)``, which returns a ``protocol.Backend``.  It is
imported when it is opened, and imports its vendor's library then.
"""

import importlib
import logging

from mmgen.runtime.backends.protocol import Backend
from mmgen.runtime.base.choices import chosen
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.numbers import whole
from mmgen.runtime.storage.schema import Bundle

OPENERS = {  # module in this package by name, in the order in which ``auto`` tries them
    "tensorrt": "tensorrt.backend",
    "tensorrt-rtx": "tensorrt.backend",
    "ort-cuda": "ort.cuda",
    "openvino": "openvino.backend",
    "ort-cpu": "ort.cpu",
    "openvino-bf16": "openvino.backend",
    "ort-cpu-int8": "ort.cpu",
}
NAMES = tuple(OPENERS)
ON_GPU = NAMES[:3]
AUTO = NAMES[:5]  # the others lose precision that a bundle may need: only on request
MOST_THREADS = 1024

log = logging.getLogger("mmgen")


def open_backend(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """Open a backend for a bundle; ``auto`` takes the first that works here and logs why those before it don't.

    Args:
        name: ``auto`` or one of ``NAMES``.
        bundle: to run; a TensorRT backend needs engines of it.
        threads: of a CPU backend; None: one a core.

    Raises:
        MmgenError: as ``check_backend``, or it can't be opened here; another one is never opened instead.
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
    # Users with a GPU shouldn't have to find out by timing that it isn't used.
    level = logging.WARNING if reasons and _has_gpu() else logging.INFO
    log.log(level, "backend %s", "; not ".join((backend.name, *reasons)))
    return backend


def check_backend(name: object, threads: object) -> int | None:
    """Check a backend's name and number of threads, and return the latter.

    Raises:
        MmgenError: unknown name; not a whole number, below 1, or more threads than libraries should start.
    """
    chosen("backend", name, ("auto", *NAMES))
    return None if threads is None else whole("threads", threads, "a whole number, at least 1", 1, MOST_THREADS)


def candidates_for(bundle: Bundle) -> tuple[str, ...]:
    """List the backends that ``auto`` tries, in this order.

    A bundle for CPUs alone has been compared with torch on ONNX Runtime, and uses operators that other backends may
    lack or compute differently, as OpenVINO 2026.4 does with Fourier transforms.
    """
    return AUTO[-1:] if bundle.cpu_only else AUTO


def _has_gpu() -> bool:
    from mmgen.runtime.backends.cuda import open_device

    try:
        open_device().close()
    except MmgenError:
        return False
    return True


def _open(name: str, bundle: Bundle, threads: int | None) -> Backend:
    backend: Backend = importlib.import_module(f"mmgen.runtime.backends.{OPENERS[name]}").open_backend(
        name, bundle, threads
    )
    return backend
