"""Names that somebody typed: one of those there are, or an error that knows which one was meant."""

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from mmgen.runtime.base.errors import MmgenError, shown

SIMILAR = 0.6  # difflib's ratio, from which on a name may be another one with a slip in it

_Name = TypeVar("_Name", bound=str)


def chosen(what: str, given: object, choices: Sequence[_Name]) -> _Name:
    """The choice that was made.

    Args:
        what: begins the error.
        choices: what there is to choose from.

    Raises:
        MmgenError: none of them; it names them all, and the near one.
    """
    if isinstance(given, str):
        for choice in choices:
            if choice == given:
                return choice
    raise MmgenError(what, got=shown(given), wanted=either(choices), remedy=did_you_mean(given, choices))


def near(given: object, choices: Iterable[str]) -> str | None:
    """The choice that a name is most like, if it is like any; upper and lower case are the same."""
    if not isinstance(given, str):
        return None
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(given.lower(), lower, 1, SIMILAR)
    return lower[found[0]] if found else None


def did_you_mean(given: object, choices: Iterable[str]) -> str | None:
    """The remedy of an error about a name: the near one, if there is one."""
    found = near(given, choices)
    return None if found is None else f"did you mean {found!r}?"


def either(choices: Iterable[object]) -> str:
    """What may be chosen, for an error."""
    return " or ".join(map(repr, choices))
