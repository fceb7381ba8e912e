"""Arrays in numpy's .npy files."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.numpy_files import MAGIC, NoArray, read_npy
from mmgen.runtime.media.source import File, Source, opened

ZIP = b"PK"  # the first bytes of files of several arrays


def read_array(source: Source, wanted: str = "a .npy file of numbers") -> NDArray[Any]:
    """Read the array in a .npy file.

    Args:
        source: the file's name, or its bytes.
        wanted: what is accepted, for errors.

    Raises:
        MmgenError: the file can't be read, is damaged or cut, or holds anything but one array of numbers or bools.
    """
    with opened(source, wanted) as file:
        return array_in(file)


def array_in(file: File) -> NDArray[Any]:
    """Read the array in a .npy file that is open; errors as ``read_array``."""
    start = file.start(len(MAGIC))
    if start != MAGIC:
        kind = "an archive of arrays" if start.startswith(ZIP) else "no .npy file"
        raise MmgenError(f"{file.name} is {kind}", wanted=file.wanted)
    try:
        return read_npy(file.content, file.size)
    except NoArray as error:
        what = f"{file.name} is damaged, cut or no array of numbers ({error})"
        raise MmgenError(what, wanted=file.wanted) from error
    except MemoryError as error:
        what = f"{file.name} is larger than the memory, {file.size / 1e9:.3g} GB"
        raise MmgenError(what, wanted=file.wanted) from error


def npy(array: NDArray[Any] | Sequence[str]) -> bytes:
    """Return an array as a .npy file."""
    content = io.BytesIO()
    np.save(content, np.asarray(array), allow_pickle=False)
    return content.getvalue()
