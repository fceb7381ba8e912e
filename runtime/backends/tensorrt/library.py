"""TensorRT and TensorRT for RTX, imported: one API, two modules, and the place that engines of each run in."""

import functools
import importlib
import logging
import platform
from collections.abc import Sequence
from typing import Any

from mmgen.runtime.backends.cuda import Device
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Flavour, Place

MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
TITLES: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX"}
KEPT = 20  # messages

log = logging.getLogger("mmgen.tensorrt")


def find_library(flavour: Flavour) -> Any:
    """Import the module of a flavour without calling anything in it.

    Raises:
        MmgenError: it isn't installed, or a library that it needs isn't.
    """
    name = MODULES[flavour]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MmgenError(f"{TITLES[flavour]} is not installed", remedy=_remedy(flavour)) from error
    except (ImportError, OSError) as error:  # the module is installed, and a shared library isn't
        raise MmgenError(f"{TITLES[flavour]} can't be loaded ({error})", remedy=_remedy(flavour)) from error


def _remedy(flavour: Flavour) -> str:
    match flavour:
        case "tensorrt":
            return "on a Jetson make the environment with --system-site-packages, elsewhere pip install tensorrt"
        case "tensorrt-rtx":
            return extra("rtx")


def version(library: Any) -> str:
    """Return the library's version, ``1.7.1.116``; TensorRT 10.3 leaves out the build's number."""
    return str(library.__version__)


@functools.cache
def make_logger(library: Any) -> Any:
    """Make the one logger of a library; TensorRT uses the first it gets for the whole process.

    It forwards to logging's ``mmgen.tensorrt``.  ``errors`` has the last errors; clear it before a call that may fail.
    """
    severity = library.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.CRITICAL,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.INFO)
            if level >= logging.ERROR:
                self.errors.append(" ".join(message.split()))
                del self.errors[:-KEPT]
            log.log(level, "%s", message)

    return Logger()


def place(
    flavour: Flavour, library: Any, device: Device | None = None, compute_capabilities: Sequence[str] = ()
) -> Place:
    """Describe the place that engines run in.

    Args:
        flavour: of the library.
        library: from ``find_library``.
        device: may be None for tensorrt-rtx, whose engines are built for compute capabilities.
        compute_capabilities: such as ``sm86``; none: the device's own.
    """
    if flavour == "tensorrt-rtx" and (compute_capabilities or device):
        own = (device.compute_capability,) if device else ()
        return Place(flavour, version(library), tuple(sorted(compute_capabilities or own)))
    if device is None:
        raise MmgenError("no CUDA device", remedy=f"{TITLES[flavour]} needs one to know where engines run")
    return Place(
        flavour,
        version(library),
        (device.compute_capability,),
        system=f"{platform.system().lower()} {platform.machine()}",
        cuda=device.driver_cuda,
        device=device.name,
        multiprocessors=device.multiprocessors,
        memory_gib=round(device.memory_bytes / 2**30),
    )
