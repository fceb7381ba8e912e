"""Folders that are written completely or not at all."""

import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import explained, sync_folder
from mmgen.runtime.files.exchange import exchange
from mmgen.runtime.files.links import is_link
from mmgen.runtime.files.unfinished import alive, beside, leftovers, unfinished


@contextmanager
def whole_folder(
    out: Path,
    *,
    wanted_bytes: int = 0,
    remedy: str = "choose another place",
    check: Callable[[Path], None] = lambda out: None,
    carry: tuple[str, ...] = (),
    alone: bool = False,
) -> Iterator[Path]:
    """Yield a folder to write in, which becomes ``out`` when the block ends without an error; an empty one is dropped.

    It lies next to ``out`` under a name of ``unfinished``.  On an error, Ctrl-C or SIGTERM it is deleted, and what was
    at ``out`` stays as it was.  What a killed process left behind is deleted first.  Whenever this process is killed,
    there is the older folder or the new one at ``out``, with what is carried over; where the system can't exchange two
    folders, the older one may lie next to it, until ``recover`` puts it back.

    Args:
        out: nothing, or an older folder.
        wanted_bytes: free space that is needed.
        remedy: for an error about a folder that can't be written or is full.
        check: called with ``out`` before any work; raises where ``out`` must not be replaced.
        carry: names in the older folder that are moved to the new one, unless it has them too.
        alone: no other process writes ``out`` now, so whatever is unfinished there is left over.

    Raises:
        MmgenError: the folder can't be written, has too little space, or there is a link or a file.
    """
    with explained(out, remedy), _endable() as end_if_asked:
        recover(out, carry=carry, alone=alone)
        if not out.parent.is_dir():
            raise MmgenError(f"folder {out.parent} is not there", remedy=f"make it, or {remedy}")
        check(out)
        if is_link(out) or (out.exists() and not out.is_dir()):
            raise MmgenError(f"{out} is there and is not a folder", remedy=f"move it away, or {remedy}")
        if (free := shutil.disk_usage(out.parent).free) < wanted_bytes:
            got, wanted = size_text(free), size_text(wanted_bytes)
            raise MmgenError(
                f"free space in {out.parent}", got=got, wanted=wanted, remedy=f"make room, or {remedy}"
            )
        with unfinished(out) as partial:
            try:
                partial.mkdir()
                yield partial
                if any(partial.iterdir()):
                    carried = [name for name in carry if _goes_over(name, out, partial)]
                    for name in carried:
                        _copy_by_links(out / name, partial / name)
                    _to_disk(partial)
                    end_if_asked()
                    _swap(partial, out, carried)
            finally:
                shutil.rmtree(partial, ignore_errors=True)


def recover(out: Path, *, carry: tuple[str, ...] = (), alone: bool = False) -> None:
    """Put back an older folder that a killed process had set aside; delete what such processes left."""
    dead = [(path, kind) for path, pid, kind in leftovers(out) if alone or not alive(path, pid)]
    for path, kind in dead:
        if kind == "old" and not os.path.lexists(out):
            path.rename(out)
            continue
        if kind == "old":
            for name in carry:
                if _goes_over(name, path, out):
                    (path / name).rename(out / name)
            path = path.rename(beside(out, "partial"))  # half deleted, it must not be put back
        shutil.rmtree(path, ignore_errors=True)


def put_back(out: Path) -> bool:
    """Put back what ``recover`` would, and leave the rest alone: for readers of a folder that doesn't exist.

    Returns:
        Whether there was such a folder.

    Raises:
        MmgenError: it can't be renamed.
    """
    try:
        found = [path for path, pid, kind in leftovers(out) if kind == "old" and not alive(path, pid)]
    except (OSError, ValueError):  # no file can have such a name
        return False
    for path in found[:1]:
        try:
            path.rename(out)
        except OSError as error:
            what = f"{out} was set aside as {path}, and can't be renamed to what it was ({error.strerror})"
            raise MmgenError(what, remedy="rename it") from error
    return bool(found)


def size_text(count: int) -> str:
    """Write a number of bytes with its unit."""
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _swap(partial: Path, out: Path, carried: list[str]) -> None:
    """Replace the older folder by the new one; what ``partial`` is then has to be deleted.

    What is carried over is in both.  In the end the new one gets the older one's own, which may be in use.
    """
    if not out.exists():
        partial.rename(out)
    elif exchange(partial, out):
        for name in carried:
            exchange(partial / name, out / name)
    else:
        old = beside(out, "old")
        out.rename(old)
        try:
            partial.rename(out)
        finally:
            if not out.exists():
                old.rename(out)
        old.rename(partial)
    sync_folder(out.parent)


def _goes_over(name: str, older: Path, newer: Path) -> bool:
    return (older / name).is_dir() and not is_link(older / name) and not os.path.lexists(newer / name)


def _copy_by_links(source: Path, target: Path) -> None:
    """Copy a folder of finished files without copying their bytes; locks and unfinished files are left out."""
    unfinished_files = shutil.ignore_patterns(".*")
    shutil.copytree(source, target, symlinks=True, ignore=unfinished_files, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    """Give a file a second name; copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _to_disk(folder: Path) -> None:
    """Write a folder to disk, so that it survives a loss of power before it replaces another one."""
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                with path.open("rb" if os.name == "posix" else "rb+") as file:
                    os.fsync(file.fileno())
        sync_folder(Path(root))


@contextmanager
def _endable() -> Iterator[Callable[[], None]]:
    """Have SIGTERM, like Ctrl-C, end the block as an exception, so that it cleans up.

    Yields a function that raises the exception again: a library that called Python back may have swallowed it.  Only
    signals with Python's default handlers are touched, and only in the main thread.
    """
    received: list[BaseException] = []

    def again() -> None:
        if received:
            raise received[0]

    def leave(number: int, frame: FrameType | None) -> None:
        received.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
        raise received[-1]

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handled: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
        for number, default in handled.items():
            if signal.getsignal(number) is default:
                before[number] = default
                signal.signal(number, leave)
    try:
        yield again
    finally:
        for number, default in before.items():
            signal.signal(number, default)
