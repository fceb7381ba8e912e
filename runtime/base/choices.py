"""Names that users type: one of the known ones, or an error that suggests the one that was meant."""

import difflib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from mmgen.runtime.base.errors import MmgenError, shown

SIMILAR = 0.6  # difflib's ratio from which a name may be a misspelling of another one

_Name = TypeVar("_Name", bound=str)


def chosen(what: str, given: object, choices: Sequence[_Name]) -> _Name:
    """Return the choice that was made.

    Args:
        what: begins the error message.
        choices: the names to choose from.

    Raises:
        MmgenError: none of them; it lists them all, and suggests the nearest.
    """
    if isinstance(given, str):
        for choice in choices:
            if choice == given:
                return choice
    raise MmgenError(what, got=shown(given), wanted=either(choices), remedy=did_you_mean(given, choices))


def near(given: object, choices: Iterable[str]) -> str | None:
    """Find the choice that a name is most like, if it is like any; upper and lower case are the same."""
    if not isinstance(given, str):
        return None
    lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(given.lower(), lower, 1, SIMILAR)
    return lower[found[0]] if found else None


def did_you_mean(given: object, choices: Iterable[str]) -> str | None:
    """Return the remedy of an error about a name: the nearest one, if there is one."""
    found = near(given, choices)
    return None if found is None else f"did you mean {found!r}?"


def either(choices: Iterable[object]) -> str:
    """List the choices, for an error."""
    return " or ".join(map(repr, choices))
