"""Files that are whole or not there, and paths that any library takes."""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.unfinished import alive, leftovers, unfinished

NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS}  # of file systems whose folders can't be synced


def followed(path: Path) -> Path:
    """Where a path leads that somebody named: with ``whole_file``, a link that they have there stays a link."""
    return Path(os.path.realpath(path))


@contextmanager
def whole_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes a file, which takes its place when the block ends well.

    A file is opened beside ``path`` at once, so that a place that can't be written shows before any work is done.  An
    error or Ctrl-C in the block leaves what was at ``path`` untouched and nothing beside it.  What killed processes
    left of such files is cleared away first.  A link at ``path`` is replaced, and what it leads to stays as it is.

    Raises:
        MmgenError: the place can't be written, or the disk is full.
    """
    with explained(path):
        if not _may_be_replaced(path):
            raise MmgenError(f"{path} is there and is not a file", remedy="choose another place")
        for left, pid, _ in leftovers(path, stat.S_ISREG):
            if not alive(left, pid):
                left.unlink(missing_ok=True)
    with unfinished(path) as partial:
        with explained(path):
            file = partial.open("xb")  # exclusive: it follows no link, and opens nothing that was there
        try:

            def write(content: bytes) -> None:
                with explained(path):
                    file.write(content)

            yield write
            with explained(path):
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
                sync_folder(path.parent)
        finally:
            with suppress(OSError):  # a full disk, which flush reported
                file.close()
            partial.unlink(missing_ok=True)


@contextmanager
def explained(path: Path, remedy: str = "choose another place") -> Iterator[None]:
    """Say of the system's errors in a block that ``path`` can't be written, unless they name a file somewhere else.

    Raises:
        MmgenError: it can't be written.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str) and not _is_near(Path(error.filename), path):
            raise
        raise MmgenError(f"{path} can't be written ({error.strerror or error})", remedy=remedy) from error


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a loss of power, where the system can do that."""
    if os.name != "posix":
        return
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that can be written and not be read
        return
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(number)


@contextmanager
def as_text(path: Path) -> Iterator[Path]:
    """A path for libraries that take names in UTF-8 alone, valid as long as the block lasts.

    It is the same path, but for folders with names of bytes that no UTF-8 is: Linux has another way to what a program
    has open.
    """
    try:
        str(path.parent).encode()
    except UnicodeEncodeError:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            yield Path(f"/proc/self/fd/{folder}") / path.name
        finally:
            os.close(folder)
    else:
        yield path


def _is_near(file: Path, path: Path) -> bool:
    """Whether a file is beside ``path`` or below."""
    return file.absolute().is_relative_to(path.parent.absolute())


def _may_be_replaced(path: Path) -> bool:
    """Whether there is a file, a link or nothing; renaming onto a device would replace it."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)
