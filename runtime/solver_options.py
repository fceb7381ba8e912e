"""A solver's options: a frozen dataclass each, filled from names and values that somebody typed."""

import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal

from mmgen.runtime.bundle import Defaults
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


def over_defaults(defaults: Defaults, solver: str | None, given: Mapping[str, Option] | None) -> dict[str, Option]:
    """Options of a request: over the bundle's own if the solver is the bundle's too, which belong to no other.

    Raises:
        MmgenError: they aren't names and values.
    """
    if given is not None and not isinstance(given, Mapping):
        raise MmgenError("options", got=repr(given), wanted="values by the name of the solver's option")
    own = defaults.solver_options if solver in (None, defaults.solver) else {}
    return {**own, **(given or {})}


def read(kind: type, name: str, text: str) -> Option:
    """An option as a command line gives it, by its field's type; text that is none stays, to be refused as it is."""
    hint = typing.get_type_hints(kind).get(name)
    choices = typing.get_args(hint) if typing.get_origin(hint) is Literal else (True, False) if hint is bool else ()
    for choice in choices:
        if str(choice).lower() == text.lower():
            return typing.cast(Option, choice)
    try:
        return hint(text) if hint in (int, float) else text
    except ValueError:
        return text


def described(kind: type) -> str:
    """Every option with its default, and what else it may be where that is one of a few."""
    hints = typing.get_type_hints(kind)
    return ", ".join(f"{f.name}={f.default}" + _others(hints[f.name], f.default) for f in fields(kind))


def _others(hint: Any, default: object) -> str:
    others = [str(choice) for choice in typing.get_args(hint) if choice != default]
    return f" (or {', '.join(others)})" if others else ""


def either(choices: Iterable[object]) -> str:
    """What may be chosen, for an error."""
    return " or ".join(map(repr, choices))
