"""A solver's options: a frozen dataclass each, filled from names and values that somebody typed."""

import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from mmgen.runtime.errors import MmgenError

Option = str | int | float | bool


def checked_options(solver: str, kind: type, given: Mapping[str, Option]) -> Any:
    """A solver's options, each checked against its field's type.

    Raises:
        MmgenError: an option that ``kind`` doesn't have, or a value that isn't of its type.
    """
    hints = typing.get_type_hints(kind)
    for name, value in given.items():
        what = f"option {name!r} of solver {solver!r}"
        if name not in hints:
            raise MmgenError(what, wanted=either(hints) or "no options", remedy="leave it out")
        hint = hints[name]
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            fits, wanted = value in choices and type(value) is type(choices[0]), either(choices)
        else:
            fits = type(value) is hint or (hint is float and type(value) is int)
            wanted = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}[hint]
        if not fits:
            raise MmgenError(what, got=repr(value), wanted=wanted)
    return kind(**given)


def either(choices: Iterable[object]) -> str:
    """What may be chosen, for an error."""
    return " or ".join(map(repr, choices))
