"""Kernels that TensorRT for RTX compiled on this device, kept in a file so that the next start is faster."""

import logging
from pathlib import Path
from typing import Any

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import whole_file

log = logging.getLogger("mmgen")


class RuntimeCache:
    """The cache of one engine's runtime configuration, read when it is constructed.

    Neither a file that doesn't fit nor a folder that can't be written is an error: compiling again costs only time.
    """

    def __init__(self, config: Any, path: Path) -> None:
        self._path, self._read, self._writable = path, b"", True
        self._cache = config.create_runtime_cache()
        try:
            self._read = path.read_bytes()
        except FileNotFoundError:
            log.info("%s isn't there yet: kernels are compiled, which may take a while", path)
        except OSError as error:
            log.warning("%s can't be read (%s): kernels are compiled again", path, error.strerror)
        if self._read and not self._cache.deserialize(self._read):
            log.warning("%s is of another device, driver or version, or damaged: kernels are compiled again", path)
            self._read = b""
        if not config.set_runtime_cache(self._cache):
            log.warning("TensorRT for RTX takes no runtime cache: kernels are compiled at each start")

    def save(self) -> None:
        """Write the file if there is something new; after one failure it isn't tried again."""
        if not self._writable:
            return
        made = self._cache.serialize()
        content = b"" if made is None else bytes(memoryview(made))
        if content in (b"", self._read):
            return
        try:
            with whole_file(self._path) as write:
                write(content)
        except MmgenError as error:
            log.warning("kernels will be compiled again: %s", str(error))
            self._writable = False
        self._read = content
