"""The one error that users see: what went wrong, what was got, what was wanted, what to do."""

import numpy as np

SHOWN = 60  # characters of a value
PART = 400  # characters of a part of a message; a vendor's words may be pages, and names of files are long


class MmgenError(Exception):
    """A failure the user can act on; ``str()`` is one line fit for a terminal.

    Args:
        what: the thing that is wrong, named as the user knows it.
        got: what was found.
        wanted: what is accepted.
        remedy: what to do about it, as a command or an edit.
    """

    def __init__(self, what: str, *, got: object = None, wanted: object = None, remedy: str | None = None) -> None:
        self.what, self.got, self.wanted, self.remedy = what, got, wanted, remedy
        parts = [_cut(what)]
        if got is not None:
            parts.append(f"got {_cut(str(got))}")
        if wanted is not None:
            parts.append(f"wanted {_cut(str(wanted))}")
        line = ", ".join(parts)
        super().__init__(_printable(f"{line}; {remedy}" if remedy else line))


class Cancelled(MmgenError):
    """A request that was cancelled; nothing is wrong with it."""


def said(value: object) -> str:
    """Describe a value that an error is about: an array's type and shape, of anything else the type."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def shown(value: object) -> str:
    """Return a value as Python writes it, cut if it is long."""
    if isinstance(value, (str, bytes)):
        value = value[:SHOWN]
    elif isinstance(value, (list, tuple, dict, set, frozenset)) and len(value) > SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except Exception as error:  # of another program's class, or of more digits than Python writes
        return f"{type(value).__name__}, which can't be shown ({type(error).__name__})"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _cut(part: str) -> str:
    """Cut a long part of a message, and keep its beginning and end."""
    last = PART // 4
    return part if len(part) <= PART else f"{part[: PART - last]} ... {part[-last:]}"


def _printable(text: str) -> str:
    """Join a text to one line; what isn't printable, such as terminal control codes, is written as Python does."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
