"""Clean-up of what torch leaves on a machine where it exports."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from mmgen.runtime.files.temporary import temporary_place

CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def nothing_left() -> Iterator[None]:
    """Remove, when the block ends, the folder that torch makes for its compiler, which is not used here.

    Raises:
        MmgenError: there is no place for temporary files.
    """
    if CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(dir=temporary_place()) as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
