"""Standard streams that are closed or can't be written: work goes on, and no other file takes their number."""

import os
import sys
from contextlib import suppress
from typing import IO, Any


def open_closed_streams() -> None:
    """Connect stdin, stdout and stderr to the null device if they were closed when this process started.

    Otherwise the next file that is opened gets their number, and a library that prints to stderr writes into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            _connect_to_null(number)
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def hush(stream: IO[Any]) -> None:
    """Connect a stream that can't be written to the null device, so that its buffer does no harm at exit."""
    with suppress(OSError):  # a replacement by a program that isn't a file
        _connect_to_null(stream.fileno())


def _connect_to_null(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
