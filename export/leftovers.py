"""What torch leaves on a machine where it exports: nothing."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def nothing_left() -> Iterator[None]:
    """The folder that torch makes for a compiler, which is not used here, goes away with the block."""
    if CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ[CACHE] = folder
        try:
            yield
        finally:
            del os.environ[CACHE]
