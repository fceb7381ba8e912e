"""What engines are built for: the names that ``--target`` takes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from mmgen.engines.turing import TURING
from mmgen.runtime.backends import cuda
from mmgen.runtime.backends.tensorrt.library import find_library, place
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Flavour, Place

HOST = "host"
CPU = "cpu"  # which has graphs for ONNX Runtime, and no engines
ON_DEVICE = "engines for a Jetson or a server GPU are built on that machine: mmgen build BUNDLE"


@dataclass(frozen=True)
class Target:
    """Where engines are to run, as one build serves it."""

    place: Place


@dataclass(frozen=True)
class Possible:
    """What this machine can build right now."""

    names: tuple[str, ...]  # for ``parse``; empty: nothing
    reason: str  # why these, or how to get there; one line


def parse(names: Sequence[str] = ()) -> Target:
    """Parse target names.

    Args:
        names: ``host``, also for none: this machine's device, with TensorRT or else TensorRT for RTX.  Or compute
            capabilities such as ``sm86``: one engine of TensorRT for RTX that holds them all, with no GPU.

    Raises:
        MmgenError: an unknown name, ``host`` together with others, no device, or no library.
    """
    if set(names) <= {HOST}:
        return _host()
    for name in names:
        if name != HOST and not re.fullmatch(r"sm\d+", name):
            raise MmgenError("target", got=repr(name), wanted=f"{HOST} or compute capabilities such as sm86")
    if HOST in names:
        raise MmgenError(
            "targets", got=" ".join(names), wanted=f"{HOST} alone, or compute capabilities", remedy="build twice"
        )
    library = find_library("tensorrt-rtx")
    known = capabilities(library)
    for name in names:
        if name not in known:
            raise MmgenError("target", got=repr(name), wanted=" ".join((HOST, *known)), remedy=ON_DEVICE)
    return Target(place("tensorrt-rtx", library, compute_capabilities=tuple(sorted(set(names)))))


def capabilities(library: ModuleType) -> tuple[str, ...]:
    """List what a release of TensorRT for RTX builds for, such as sm86, lowest first."""
    names = [name.lower() for name in library.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    return tuple(sorted(names, key=lambda name: int(name[2:])))


def possible() -> Possible:
    """Find what this machine can build: for its own device, else portable engines for desktop GPUs, else nothing.

    Portable engines hold every capability but Turing's: more of them cost neither size nor time.
    """
    try:
        here = parse([HOST]).place
    except MmgenError as error:
        no_host = error
    else:
        return Possible((HOST,), f"{here.flavour} {here.version} for {here.device or here.compute_capabilities[0]}")
    try:
        library = find_library("tensorrt-rtx")
    except MmgenError:
        reason = f"no engines for this machine ({no_host.what}) and, for desktop GPUs, no TensorRT for RTX"
        return Possible((), f"{reason}; {extra('rtx')}, or mmgen build BUNDLE on the device")
    return Possible(tuple(n for n in capabilities(library) if n != TURING), f"portable engines; {no_host.what}")


def _host() -> Target:
    try:
        device = cuda.open_device()  # first of all: TensorRT must not be touched where there is none
    except MmgenError as error:
        remedy = f"{error.remedy}; or name what to build for: --target sm86"
        raise MmgenError(error.what, got=error.got, wanted=error.wanted, remedy=remedy) from error
    try:
        flavour, library = _library()
        if flavour == "tensorrt-rtx" and device.compute_capability not in (known := capabilities(library)):
            raise MmgenError(
                f"{device.name}: TensorRT for RTX builds no engines",
                got=device.compute_capability,
                wanted=" ".join(known),
                remedy="install TensorRT",
            )
        return Target(place(flavour, library, device))
    finally:
        device.close()  # its memory is the compiler's now


def _library() -> tuple[Flavour, ModuleType]:
    try:
        return "tensorrt", find_library("tensorrt")
    except MmgenError as error:
        missing = error
    try:
        return "tensorrt-rtx", find_library("tensorrt-rtx")
    except MmgenError:
        raise missing from None
