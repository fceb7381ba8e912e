"""What a program takes of the machine, and what others take meanwhile."""

import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench.machine import cores


@dataclass
class Cores:
    """Processor time while something ran, in cores: seconds of it a second."""

    own: float = 0.0
    others: float | None = None  # all other programs, of all containers; None: this system doesn't tell
    available: int = field(default_factory=lambda: cores() or 1)


@contextmanager
def watched(root: Path = Path("/")) -> Iterator[Cores]:
    """Cores in use during the block, known when it ends."""
    used = Cores()
    began, own, everybody = time.perf_counter(), time.process_time(), _busy_seconds(root)
    try:
        yield used
    finally:
        seconds = max(time.perf_counter() - began, 1e-9)
        mine, now = time.process_time() - own, _busy_seconds(root)
        used.own = mine / seconds
        if everybody is not None and now is not None:
            used.others = max(now - everybody - mine, 0.0) / seconds


def peak_memory() -> int:
    """Most bytes of host memory that this process held at a time; 0 where the system doesn't tell."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.M)
    except OSError:
        found = None
    if found:  # ru_maxrss of a process may be that of the one that started it
        return 1024 * int(found[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def free_device_memory() -> int | None:
    """Bytes that are free on the first GPU, whoever holds the rest; None: there is none to ask."""
    try:
        device = open_device()
    except MmgenError:
        return None
    try:
        return device.free_bytes()
    finally:
        device.close()


def _busy_seconds(root: Path) -> float | None:
    """Processor time of all programs since the machine was started, that of its host if it is a virtual one too."""
    try:
        ticks = (root / "proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, ticks[:8])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
