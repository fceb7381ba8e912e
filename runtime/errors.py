"""The one error users see: what went wrong, what was got, what was wanted, what to do."""

import numpy as np

SHOWN = 80  # characters of a value


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
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if wanted is not None:
            parts.append(f"wanted {wanted}")
        line = ", ".join(parts)
        one_line = " ".join((f"{line}; {remedy}" if remedy else line).split())
        # Names of files may not be text, and others' may have letters that change what a terminal shows.
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in one_line))


class Cancelled(MmgenError):
    """A request that somebody cancelled; nothing is wrong with it."""


def said(value: object) -> str:
    """What an error says that it got: an array's type and shape, of anything else the type."""
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def shown(value: object) -> str:
    """A value as Python writes it, cut where that is long."""
    try:
        text = repr(value)
    except Exception as error:  # of somebody else's class, or of more digits than Python writes
        return f"{type(value).__name__}, which can't be shown ({type(error).__name__})"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
