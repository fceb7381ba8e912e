"""Locks for processes that write folders."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.links import is_link

FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def lock_of(folder: Path) -> Path:
    """Return the path of a folder's lock, next to the folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None) -> Iterator[Literal["mine", "theirs", "none"]]:
    """Hold a lock, which ends at the latest with this process; its file is deleted afterwards.

    Args:
        path: of the lock's file, in an existing folder.
        waiting: called when another process holds it, before waiting; None: don't wait.

    Raises:
        MmgenError: a link lies in its place.
        OSError: it can't be made.

    Yields:
        ``mine``; ``theirs`` where another process holds it and ``waiting`` is None; ``none`` where locks don't work.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield "none"
        return
    while True:
        file = _open(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                file.close()
                yield "theirs"
                return
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a network folder without locks
            file.close()
            path.unlink(missing_ok=True)
            yield "none"
            return
        try:
            if os.path.samestat(path.lstat(), os.fstat(file.fileno())):
                break
        except FileNotFoundError:
            pass
        file.close()  # the holder before deleted its file
    try:
        yield "mine"
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _open(path: Path) -> IO[bytes]:
    try:
        return os.fdopen(os.open(path, FLAGS, 0o666), "ab")
    except OSError as error:
        if is_link(path):
            raise MmgenError(f"{path} is a link in the place of a lock", remedy="delete it") from error
        raise
