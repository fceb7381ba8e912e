"""Files that are whole or not there, and paths that any library takes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mmgen.runtime.errors import MmgenError


@contextmanager
def whole_file(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A function that writes a file, which takes its place when the block ends well.

    A file is opened beside ``path`` at once, so that a place that can't be written shows before any work is done.  An
    error or Ctrl-C in the block leaves what was at ``path`` untouched and nothing beside it.

    Raises:
        MmgenError: the place can't be written, or the disk is full.
    """
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.exists() and not path.is_file():  # renaming onto a device would replace it
        raise MmgenError(f"{path} is there and is not a file", remedy="choose another place")
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with _explained(path):
        file = partial.open("wb")
    try:

        def write(content: bytes) -> None:
            with _explained(path):
                file.write(content)

        yield write
        with _explained(path):
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
    finally:
        with suppress(OSError):  # a full disk, which flush reported
            file.close()
        partial.unlink(missing_ok=True)


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


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MmgenError(f"{path} can't be written ({error.strerror})", remedy="choose another place") from error
