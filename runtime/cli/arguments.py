"""Conditions as a command line gives them, by what the bundle takes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmgen.runtime.base.choices import did_you_mean
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.media.arrays import read_array
from mmgen.runtime.request.branches import Also
from mmgen.runtime.request.conditions import values
from mmgen.runtime.solvers.options import Option, described, read
from mmgen.runtime.solvers.registry import options_of
from mmgen.runtime.storage.schema import Bundle, Condition


def conditions(
    bundle: Bundle,
    prompts: Sequence[str],
    class_ids: Sequence[int],
    others: Sequence[str],
    option: str = "",
) -> dict[str, Any]:
    """Values by condition name.

    Args:
        prompts: for the bundle's only condition of kind text.
        class_ids: for its only condition of kind class.
        option: that these came from, for errors; "" for the three that ask.
        others: NAME=VALUE for any; VALUE is text, a class, numbers as JSON or in a .npy file, or a file of a medium.

    Raises:
        MmgenError: the bundle has no such condition, or VALUE can't be read as one.
    """
    given: dict[str, list[Any]] = {}
    if prompts:
        given[_only(bundle, "text", option or "--prompt").name] = [_text(prompt) for prompt in prompts]
    if class_ids:
        given[_only(bundle, "class", "--class-id").name] = list(class_ids)
    known = {condition.name: condition for condition in bundle.conditions}
    for argument in others:
        name, equals, value = argument.partition("=")
        name = _text(name)
        if not equals or name not in known:
            raise MmgenError(
                f"{option or '--condition'} {shown(argument)}", wanted=f"NAME=VALUE with {_takes(bundle)}",
                remedy=did_you_mean(name, known),
            )  # fmt: skip
        given.setdefault(name, []).extend(_read(known[name], value))
    return given


def negative(bundle: Bundle, prompts: Sequence[str], others: Sequence[str]) -> dict[str, Any]:
    """Conditions to guide away from, by name.

    Args:
        prompts: for the bundle's only condition of kind text.
        others: NAME=VALUE for any.

    Raises:
        MmgenError: as ``conditions``.
    """
    return conditions(bundle, prompts, (), others, "--negative")


def also(bundle: Bundle, arguments: Sequence[str]) -> list[Also]:
    """Further conditions with their weights, of VALUE:WEIGHT or NAME=VALUE:WEIGHT; the weight is 1 if it is left out.

    Raises:
        MmgenError: as ``conditions``.
    """
    return [_also(bundle, argument) for argument in arguments]


def options(bundle: Bundle, solver: str | None, arguments: Sequence[str]) -> dict[str, Option]:
    """Options of a solver, of NAME=VALUE; ``solver`` None: the bundle's default.

    Raises:
        MmgenError: an argument without =, or a solver that doesn't fit the bundle.
    """
    kind = options_of(bundle.defaults.solver if solver is None else solver, bundle.process)
    given = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not equals:
            raise MmgenError(f"--option {shown(argument)}", wanted=f"NAME=VALUE, such as {described(kind)}")
        given[name] = read(kind, name, value)
    return given


def _also(bundle: Bundle, argument: str) -> Also:
    what, colon, weight = argument.rpartition(":")
    try:
        share = float(weight)
    except ValueError:  # the text has a colon of its own
        colon = ""
    if not colon:
        what, share = argument, 1.0
    name = _text(what.partition("=")[0])
    named = "=" in what and name in {c.name for c in bundle.conditions}
    return conditions(bundle, () if named else (what,), (), (what,) if named else (), "--also"), share


def _only(bundle: Bundle, kind: str, option: str) -> Condition:
    found = [condition for condition in bundle.conditions if condition.kind == kind]
    if len(found) != 1:
        raise MmgenError(
            f"{option} does not fit this bundle: it has {len(found) or 'no'} {kind} conditions",
            wanted=f"--condition NAME=VALUE with {_takes(bundle)}",
        )
    return found[0]


def _takes(bundle: Bundle) -> str:
    return " or ".join(f"{c.name} ({c.kind})" for c in bundle.conditions) or "no condition at all"


def _read(condition: Condition, value: str) -> list[Any]:
    """Read what was typed as ``generate`` takes it: of an array one value or several."""
    match condition.kind:
        case "text":
            return [_text(value)]
        case "class":
            try:
                return [int(value)]
            except ValueError:
                raise MmgenError(f"condition {condition.name!r}", got=shown(value), wanted="a whole number") from None
        case "image" | "video" | "audio" | "series":
            return [Path(value)]
        case "array":
            wanted = f"numbers of shape {condition.shape} as JSON or in a .npy file"
            if value.endswith(".npy"):
                return values(condition, read_array(Path(value), wanted))
            try:
                numbers = json.loads(value)
            except (ValueError, RecursionError) as error:
                what = f"condition {condition.name!r}: {shown(value)} is not JSON ({error})"
                raise MmgenError(what, wanted=wanted) from error
            return values(condition, numbers)


def _text(argument: str) -> str:
    """Text as it was typed: in a locale that knows ASCII alone, Python has bytes for all else, which are UTF-8."""
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument
