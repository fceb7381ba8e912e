"""Numpy's files, .npy and .npz, from untrusted sources: the size of an array is known before it is allocated.

``numpy.load`` parses a header as Python, allocates what it claims and unpacks what is compressed.  Here a header is one
line of one form, and an array's bytes are in the file, as ``numpy.savez`` writes them.
"""

import math
import re
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.free_memory import free_bytes

if TYPE_CHECKING:
    import zipfile

MAGIC = b"\x93NUMPY"
LONGEST = 4096  # bytes of a header; numpy's own have 118
AXES_GIVEN = r"\(((?:[0-9]{1,18}, ?)*(?:[0-9]{1,18})?)\)"
HEADER = re.compile(rf"\{{ *'descr': *'([^']*)', *'fortran_order': *(True|False), *'shape': *{AXES_GIVEN},? *\}} *\n?")
DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f(2|4|8|12|16)|U[0-9]{1,7})")
AXES = 32  # that every version of numpy allows
PIECE = 1 << 18  # bytes that are read at once
MEMBERS = 1 << 20  # bytes of an archive's table of contents


class NoArray(ValueError):
    """Bytes that aren't an array this module reads; ``str()`` says why."""


def read_npy(file: BinaryIO, size: int, kinds: str = "biuf") -> NDArray[Any]:
    """Read the array in a .npy file.

    Args:
        file: at its start.
        size: its bytes.
        kinds: letters of numpy's kinds of types that are accepted.

    Raises:
        NoArray: damaged, cut, or of another kind of type.
        MemoryError: more than is free.
    """
    start = file.read(len(MAGIC) + 2)
    width = {1: 2, 2: 4, 3: 4}.get(start[-2] if len(start) == len(MAGIC) + 2 else 0)
    if width is None or not start.startswith(MAGIC):
        raise NoArray("it doesn't begin as one")
    length = int.from_bytes(file.read(width), "little")
    if length > LONGEST:
        raise NoArray(f"its header has {length} bytes")
    header = file.read(length).decode("latin-1")
    found = HEADER.fullmatch(header)
    if found is None:
        raise NoArray(f"its header is {header[:60]!r}")
    descr, order, axes = found.groups()
    if not DTYPE.fullmatch(descr) or descr.lstrip("<>|=")[0] not in kinds:
        raise NoArray(f"it holds {descr[:20]!r}")
    shape = tuple(map(int, filter(None, axes.replace(" ", "").split(","))))
    try:
        dtype = np.dtype(descr)
    except TypeError as error:  # a long float of another machine
        raise NoArray(f"it holds {descr!r}, which this machine doesn't have") from error
    count, left = math.prod(shape) * dtype.itemsize, size - len(start) - width - length
    if len(shape) > AXES or count > left:
        raise NoArray(f"it is cut, or its shape is wrong: ({axes[:60]}) in {max(left, 0)} bytes")
    if count > PIECE and (free := free_bytes()) is not None and count > free:
        raise MemoryError(f"{count} bytes, and {free} are free")  # numpy would allocate more: a file may be sparse
    content = np.empty(count, np.uint8)
    for begin in range(0, count, PIECE):
        if file.readinto(content[begin : begin + PIECE]) != min(PIECE, count - begin):  # type: ignore[attr-defined]
            raise NoArray("it is cut")
    if dtype.kind == "b" and count and content.max() > 1:
        raise NoArray("it holds bools that are neither true nor false")
    if dtype.kind == "U" and count and content.view(f"{dtype.byteorder}u4").max() > sys.maxunicode:
        raise NoArray("it holds letters that no text has")
    try:
        return content.view(dtype).reshape(shape, order="F" if order == "True" else "C")
    except ValueError as error:  # an empty array with axes that none can have
        raise NoArray(str(error)) from error


def read_npz(file: BinaryIO, size: int, kinds: str = "biuf") -> dict[str, NDArray[Any]]:
    """Read the arrays in a .npz file by name; compressed ones are refused.

    Args:
        file, size, kinds: as for ``read_npy``.

    Raises:
        NoArray: damaged, cut, or with anything else in it.
        MemoryError: more than is free.
    """
    import zipfile  # imports every kind of compression, which a request doesn't need

    try:
        with zipfile.ZipFile(_Pieces(file)) as archive:
            members = archive.infolist()
            if any(m.compress_type != zipfile.ZIP_STORED or m.compress_size != m.file_size for m in members):
                raise NoArray("something in it is compressed")
            if sum(member.file_size for member in members) > size:
                raise NoArray("it is cut, or its parts overlap")
            return {member.filename.removesuffix(".npy"): _member(archive, member, kinds) for member in members}
    except (NoArray, MemoryError):
        raise
    except Exception as error:  # zipfile raises many kinds of errors for damaged archives
        raise NoArray(str(error)) from error


def _member(archive: "zipfile.ZipFile", member: "zipfile.ZipInfo", kinds: str) -> NDArray[Any]:
    with archive.open(member) as file:
        try:
            array = read_npy(file, member.file_size, kinds)  # type: ignore[arg-type]
            if file.read(1):
                raise NoArray("there is more than an array")
        except NoArray as error:
            raise NoArray(f"{member.filename[:60]!r}: {error}") from error
    return array


class _Pieces:
    """A file that is read in limited pieces: otherwise an archive of a million empty members would fill the memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        content = self._file.read(MEMBERS + 1 if count < 0 else min(count, MEMBERS + 1))
        if len(content) > MEMBERS:
            raise NoArray("its table of contents is too long")
        return content
