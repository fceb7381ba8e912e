"""A bundle's folder that appears whole or not at all."""

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mmgen.runtime.bundle import MANIFEST
from mmgen.runtime.errors import MmgenError


@contextmanager
def placed(out: Path, wanted_bytes: int) -> Iterator[Path]:
    """A folder to write in, which becomes ``out`` when the block ends well.

    It is ``.NAME.PID.partial`` beside ``out``.  On an error, Ctrl-C or SIGTERM it goes, and a bundle that was at
    ``out`` stays as it was.  What a killed process left behind is cleared away first.

    Args:
        out: the bundle's folder: nothing, or an older bundle.
        wanted_bytes: free space to ask for.

    Raises:
        MmgenError: ``out`` is something else, can't be written, or has too little space.
    """
    out = Path(os.path.realpath(out))
    partial, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    with _explained(out), _terminable():
        _recover(out)
        _check(out, wanted_bytes)
        try:
            partial.mkdir()
            yield partial
            _swap(partial, out, old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check(out: Path, wanted_bytes: int) -> None:
    if not out.parent.is_dir():
        raise MmgenError(f"folder {out.parent} is not there", remedy="make it, or choose another place with -o")
    if out.exists() and not (out / MANIFEST).is_file():
        raise MmgenError(f"{out} is there and is not a bundle", remedy="move it away, or choose another place with -o")
    if (free := shutil.disk_usage(out.parent).free) < wanted_bytes:
        raise MmgenError(
            f"free space in {out.parent}",
            got=_size(free),
            wanted=_size(wanted_bytes),
            remedy="make room, or choose another place with -o",
        )


def _swap(partial: Path, out: Path, old: Path) -> None:
    """Rename the older bundle aside and the new one in; both are on the disk all the time."""
    if not out.exists():
        partial.rename(out)
        return
    out.rename(old)
    try:
        partial.rename(out)
    finally:
        if not out.exists():
            old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _recover(out: Path) -> None:
    """Put back an older bundle that a process set aside and was killed; delete what dead processes left."""
    name = re.compile(rf"\.{re.escape(out.name)}\.(\d+)\.(partial|old)")
    for path in sorted(out.parent.glob(f".{out.name}.*")) if out.parent.is_dir() else ():
        match = name.fullmatch(path.name)
        if match is None or _alive(int(match[1])):
            continue
        if match[2] == "old" and not out.exists():
            path.rename(out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":  # there, asking with signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MmgenError(
            f"{out} can't be written ({error.strerror or error})", remedy="choose another place with -o"
        ) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as an exception, so that it cleans up; only where nobody else handles it."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
