"""Free memory: of the machine, of the container around this process, and of the process."""

from contextlib import suppress
from pathlib import Path


def free_bytes() -> int | None:
    """Return how much memory this process can still get; None: this system doesn't say."""
    return min((free for free in (_of_machine(), _of_container(), _of_process()) if free is not None), default=None)


def _of_machine() -> int | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _of_container() -> int | None:
    """Return what a control group leaves, whose files are here in a container; its cached files can be reclaimed."""
    folder = "/sys/fs/cgroup"
    limit, used = _lines(f"{folder}/memory.max"), _lines(f"{folder}/memory.current")
    if not (limit and used and limit[0].isdigit() and used[0].isdigit()):
        return None
    cached = [int(line.split()[1]) for line in _lines(f"{folder}/memory.stat") if line.startswith("inactive_file ")]
    return max(0, int(limit[0]) - int(used[0]) + sum(cached))


def _of_process() -> int | None:
    """Return what a limit on the address space leaves, as ``ulimit -v`` sets it."""
    try:
        import resource
    except ImportError:  # on Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    sizes = _lines("/proc/self/statm")
    if limit == resource.RLIM_INFINITY or not sizes:
        return None
    return max(0, limit - int(sizes[0].split()[0]) * resource.getpagesize())


def _lines(path: str) -> list[str]:
    """Return the lines of a system file; none where it doesn't exist."""
    with suppress(OSError):
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    return []
