"""An estimate of the memory that a build needs, for a warning before it starts; nothing is refused because of it."""

import re
import warnings
from pathlib import Path

from mmgen.runtime.builds.engine_build import Flavour
from mmgen.runtime.files.folders import size_text

# Resident at the peak: so much, and so many bytes for each byte of weights.  TensorRT for RTX 1.7 took 387 MiB for
# 14 MiB of weights, 490 for 63 and 4964 for 1434.  TensorRT's own figure is what it logs of its kernels on a desktop;
# on a Jetson it has not been measured.
BASE: dict[Flavour, int] = {"tensorrt-rtx": 360 << 20, "tensorrt": 2 << 30}
FACTOR = 3.3


def expected_bytes(weights: int, flavour: Flavour, workspace_mib: int | None, shared: bool) -> int:
    """Estimate the host memory that compiling a graph takes at its peak.

    Args:
        weights: bytes of the graph.
        flavour: of TensorRT.
        workspace_mib: what the compiler may use on the device for a layer; None: not known.
        shared: the device's memory is the host's, as on a Jetson.
    """
    workspace = (workspace_mib or 0) << 20 if shared else 0
    return BASE[flavour] + round(FACTOR * weights) + workspace


def free_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory a program can get without swapping; None if the system doesn't say.  ``root`` holds proc/."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def is_shared(root: Path = Path("/")) -> bool:
    """Return whether CPU and GPU share one memory: a Jetson, in a container too.  ``root`` holds proc/."""
    try:
        return b"tegra" in (root / "proc/device-tree/compatible").read_bytes()
    except OSError:  # machines with a BIOS have no such file
        return False


def advice(shared: bool) -> str:
    """Say what to do about too little memory."""
    workspace = "cap the workspace (--workspace 1024), " if shared else ""
    return f"close other programs, {workspace}or add swap"


def warn_if_short(what: str, expected: int, free: int | None, shared: bool) -> None:
    """Warn if a build will hardly fit."""
    if free is not None and free < expected:
        warnings.warn(
            f"{what} takes about {size_text(expected)} of memory and {size_text(free)} are free; {advice(shared)}",
            stacklevel=3,
        )
