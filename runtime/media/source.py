"""What media are read from: a file that a name leads to, or the bytes of one."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.files.regular import open_regular

UNKNOWN = ("cannot identify", "Invalid data found", "Invalid argument")  # as Pillow and FFmpeg say it

Source: TypeAlias = "str | os.PathLike[str] | bytes"


@dataclass(frozen=True)
class File:
    """A file that is open, and what errors about it say."""

    content: BinaryIO  # at its start
    size: int  # bytes
    name: str  # as the user knows it
    wanted: str  # what is accepted

    def start(self, count: int) -> bytes:
        """Return the first bytes, and stay at the start."""
        found = self.content.read(count)
        self.content.seek(0)
        return found

    def refused(self, reason: object, remedy: str | None = None) -> MmgenError:
        """Make the error that it can't be read, and why."""
        return MmgenError(f"{self.name} can't be read ({reason})", wanted=self.wanted, remedy=remedy)

    @contextmanager
    def reading(self, strange: str) -> Iterator[None]:
        """Turn what a library raises in a block into an error about the file.

        Args:
            strange: the reason, where the library's own words say only that it doesn't know such files.
        """
        try:
            yield
        except MmgenError:
            raise
        except Exception as error:  # each of the libraries' readers has its own; their words may name an object
            words = str(getattr(error, "strerror", None) or error)
            known = words and not any(part in words for part in UNKNOWN)
            raise self.refused(words if known else strange) from error

    def differs(self, got: str, remedy: str) -> MmgenError:
        """Make the error that it is of another size, length or rate."""
        return MmgenError(self.name, got=got, wanted=self.wanted, remedy=remedy)


@contextmanager
def opened(source: Source, wanted: str) -> Iterator[File]:
    """Open what media are read from.

    Args:
        wanted: what is accepted, for errors.

    Raises:
        MmgenError: neither a name nor bytes; a file that can't be read, now or in the block, or is a folder, a pipe or
            a device; or it is empty.
    """
    if isinstance(source, bytes):
        with io.BytesIO(source) as content:
            yield _filled(File(content, len(source), f"a file of {len(source)} bytes", wanted))
    elif isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        with open_regular(path, wanted=wanted) as (file, size):
            yield _filled(File(file, size, str(path), wanted))
    else:
        raise MmgenError("a file", got=said(source), wanted=f"its name or its bytes: {wanted}")


def _filled(file: File) -> File:
    if not file.start(1):
        raise MmgenError(f"{file.name} is empty", wanted=file.wanted)
    return file
