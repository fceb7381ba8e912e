"""Standard streams where nobody listens: work goes on, and no file is opened in their place."""

import os
import sys
from contextlib import suppress
from typing import IO, Any


def open_closed_streams() -> None:
    """Let stdin, stdout and stderr lead nowhere if they were closed when this process was started.

    Else the next file that is opened has their number, and a library that complains to stderr writes into it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            _lead_nowhere(number)
        setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))


def hush(stream: IO[Any]) -> None:
    """Let a stream that can't be written lead nowhere, so that what is left in it does no harm at the end."""
    with suppress(OSError):  # one that a program put in its place, and that is no file
        _lead_nowhere(stream.fileno())


def _lead_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)
