"""Regular files, opened without blocking: a pipe or a device may have a file's name."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mmgen.runtime.base.errors import MmgenError

FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@contextmanager
def open_regular(path: Path, *, wanted: str | None = None, remedy: str | None = None) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file for reading, and yield it and its size in bytes.

    Args:
        wanted, remedy: for the error.

    Raises:
        MmgenError: it can't be read, now or in the block, or is a folder, a pipe or a device.
    """
    try:
        opened = os.open(path, FLAGS)
    except (OSError, ValueError) as error:  # a name may contain a zero byte
        reason = getattr(error, "strerror", None) or error
        raise MmgenError(f"{path} can't be read ({reason})", wanted=wanted, remedy=remedy) from error
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            folder = stat.S_ISDIR(status.st_mode)
            reason = os.strerror(errno.EISDIR) if folder else "it is a pipe or a device"
            raise MmgenError(f"{path} can't be read ({reason})", wanted=wanted, remedy=remedy)
        with open(opened, "rb", closefd=False) as file:
            yield file, status.st_size
    except OSError as error:
        raise MmgenError(f"{path} can't be read ({error.strerror or error})", wanted=wanted, remedy=remedy) from error
    finally:
        os.close(opened)


def read_regular(path: Path, most: int, *, remedy: str | None = None) -> bytes:
    """Read all bytes of a file.

    Raises:
        MmgenError: as ``open_regular``, or there are more than ``most``.
    """
    with open_regular(path, remedy=remedy) as (file, size):
        if size > most:
            raise MmgenError(f"{path}: bytes", got=size, wanted=f"at most {most}", remedy=remedy)
        return file.read(size)
