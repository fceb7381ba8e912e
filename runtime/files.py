"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mmgen.runtime.errors import MmgenError


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place when the block ends well.

    It is opened beside ``path`` at once, so that a place that can't be written shows before any work is done; an
    error or Ctrl-C in the block leaves what was at ``path`` untouched and nothing beside it.

    Raises:
        MmgenError: the place can't be written, or the disk is full.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.is_dir():
            raise MmgenError(f"{path} is a folder", wanted="a file")
        with _explained(path), partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with _explained(path):
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise MmgenError(f"{path} can't be written ({reason})", remedy="choose another place with -o") from error
