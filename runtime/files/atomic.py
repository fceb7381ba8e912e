"""Files that are written completely or not at all, and paths that any library takes."""

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
    """Resolve a path that a user named, for ``whole_file``: a link that they have there stays a link."""
    return Path(os.path.realpath(path))


@contextmanager
def whole_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Yield a function that writes a file, which replaces the one at ``path`` when the block ends without an error.

    A file is opened next to ``path`` at once, so that a folder that can't be written is reported before any work is
    done.  An error or Ctrl-C in the block leaves what was at ``path`` untouched, and no other file.  Such files of
    killed processes are deleted first.  A link at ``path`` is replaced, and its target stays as it is.

    Raises:
        MmgenError: it can't be written, or the disk is full.
    """
    with explained(path):
        if not _may_be_replaced(path):
            raise MmgenError(f"{path} is there and is not a file", remedy="choose another place")
        for left, pid, _ in leftovers(path, stat.S_ISREG):
            if not alive(left, pid):
                left.unlink(missing_ok=True)
    with unfinished(path) as partial:
        with explained(path):
            file = partial.open("xb")  # exclusive: it follows no link, and opens no existing file
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
    """Turn the system's errors in a block into one that ``path`` can't be written, unless they name a file elsewhere.

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
    """Make the names in a folder survive a loss of power, where the system can do that."""
    if os.name != "posix":
        return
    try:
        number = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one that can be written but not read
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
    """Yield a path for libraries that only take names in UTF-8, valid as long as the block lasts.

    It is the same path, except in folders whose names aren't UTF-8: Linux has another path to what a program has open.
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
    """Check whether a file is next to ``path`` or below that folder."""
    return file.absolute().is_relative_to(path.parent.absolute())


def _may_be_replaced(path: Path) -> bool:
    """Check that there is a file, a link or nothing; renaming onto a device would replace the device."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return True
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)
