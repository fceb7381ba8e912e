"""A solver's options: a frozen dataclass each, filled from names and values that somebody typed."""

import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import numpy as np

from mmgen.runtime.base.choices import chosen, did_you_mean, either
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.storage.schema import Defaults

Option = str | int | float | bool


def checked_options(solver: str, kind: type, given: Mapping[str, Option]) -> Any:
    """Return a solver's options, each checked against its field's type.

    Raises:
        MmgenError: an option that ``kind`` doesn't have, or a value that isn't of its type.
    """
    hints = typing.get_type_hints(kind)
    return kind(**{name: _checked(solver, hints, name, value) for name, value in given.items()})


def _checked(solver: str, hints: Mapping[str, Any], name: object, value: object) -> Option:
    """Return an option's value, of its field's type."""
    what = f"option {shown(name)} of solver {solver!r}"
    if name not in hints:
        raise MmgenError(what, wanted=either(hints) or "no options", remedy=did_you_mean(name, hints) or "leave it out")
    hint = hints[str(name)]
    if choices := typing.get_args(hint):  # of a Literal: all names, or all whole numbers
        if isinstance(choices[0], str):
            return str(chosen(what, value, choices))
        if (number := whole(what, value, either(choices))) not in choices:
            raise MmgenError(what, got=number, wanted=either(choices))
        return number
    if hint is int:
        return whole(what, value, "a whole number")
    if hint is float:
        return real(what, value, "a number", lambda number: True)  # the solver checks its range
    if hint is bool and isinstance(value, (bool, np.bool_)):
        return bool(value)
    if hint is str and isinstance(value, str):
        return value
    raise MmgenError(what, got=shown(value), wanted="True or False" if hint is bool else "text")


def over_defaults(defaults: Defaults, solver: str | None, given: Mapping[str, Option] | None) -> dict[str, Option]:
    """Return a request's options over the bundle's own, which count only with the bundle's own solver.

    Raises:
        MmgenError: they aren't names and values.
    """
    if given is not None and not isinstance(given, Mapping):
        raise MmgenError("options", got=shown(given), wanted="values by the name of the solver's option")
    own = defaults.solver_options if solver in (None, defaults.solver) else {}
    return {**own, **(given or {})}


def read(kind: type, name: str, text: str) -> Option:
    """Parse an option's text from the command line by its field's type; text that doesn't parse stays as it is."""
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
    """List every option with its default, and with its other values where it has a few."""
    hints = typing.get_type_hints(kind)
    return ", ".join(f"{f.name}={f.default}" + _others(hints[f.name], f.default) for f in fields(kind))


def _others(hint: Any, default: object) -> str:
    others = [str(choice) for choice in typing.get_args(hint) if choice != default]
    return f" (or {', '.join(others)})" if others else ""
