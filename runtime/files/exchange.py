"""Exchange of two names in one step."""

import os
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux


def exchange(one: Path, other: Path) -> bool:
    """Exchange what is at two paths of one file system, so that neither name is ever absent.

    Returns:
        False where nothing was done: the system, its C library or the file system can't, or one doesn't exist.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # an older C library
        return False
    rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    failed: int = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return not failed
