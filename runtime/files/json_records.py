"""Dataclasses as JSON, written, and read strictly, since anybody may have written the file.

A library for validation would be one more package on every robot and to import at every start, with errors of its own
instead of one line.
"""

import dataclasses
import functools
import json
import math
import types
import typing
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.files.regular import read_regular

LARGEST = 32 << 20  # bytes of a file
DIGITS = 20  # of a whole number; none of 64 bits has more

AGAIN = "export or copy the bundle again"


def read_json(path: Path) -> Any:
    """Read the content of a JSON file.

    Raises:
        MmgenError: it can't be read, isn't a regular file or is too large; or isn't JSON, or has numbers, letters or a
            depth that mmgen never writes.
    """
    content = read_regular(path, LARGEST, remedy=AGAIN)
    try:
        text = content.decode("utf-8")
        record = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise MmgenError(f"{path} is not JSON of ours (it is nested too deeply)", remedy=AGAIN) from error
    except ValueError as error:
        raise MmgenError(f"{path} is not JSON ({error})", remedy=AGAIN) from error
    if letter := _unprintable(record):
        raise MmgenError(f"{path} has the letter {letter!r}, which no text has", remedy=AGAIN)
    return record


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(number: str) -> float:
    """Parse a number; JSON has neither infinity nor NaN, but Python reads and writes them."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"the number {number:.{DIGITS}}")
    return value


def _unprintable(value: object) -> str | None:
    """Find a letter that could change a terminal or can't be written, anywhere in parsed JSON."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            todo += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            todo += item
        elif isinstance(item, str) and not item.isprintable():
            for letter in item:
                if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t":
                    return letter
    return None


def to_json(value: object) -> Any:
    """Convert dataclasses, tuples, dicts and numpy's numbers to what ``json`` writes.

    Of a field's metadata, ``transient`` leaves it out, and ``sparse`` does so where it has its default: what was added
    to a format later changes nothing about files that don't use it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value) if _is_written(f, value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def plain(value: Any) -> Any:
    """Convert arrays and tuples to lists, paths and numbers that JSON doesn't have, such as infinity, to text."""
    match value:
        case np.ndarray():
            return value.tolist()
        case Path():
            return str(value)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def _is_written(field: dataclasses.Field[Any], record: object) -> bool:
    if field.metadata.get("sparse"):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        return bool(getattr(record, field.name) != default)
    return not field.metadata.get("transient")


_T = TypeVar("_T")


def from_json(kind: Callable[..., _T], record: object, where: str) -> _T:
    """Build a dataclass from parsed JSON, every field checked; ``where`` begins each error."""
    if not isinstance(record, dict):
        raise MmgenError(where, got=type(record).__name__, wanted="an object")
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if not f.metadata.get("transient")}  # type: ignore[arg-type]
    unknown = set(record) - set(fields)
    if unknown:
        raise MmgenError(f"{where}: unknown field {shown(min(unknown))}", remedy="update mmgen, or export again")
    values = {}
    for name, item in fields.items():
        if name in record:
            values[name] = _convert(hints[name], record[name], f"{where}: {name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise MmgenError(f"{where}: field {name!r} is missing", remedy="export or copy the bundle again")
    return kind(**values)


@functools.cache
def _hints(kind: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _wrong(hint: Any, value: Any, where: str) -> MmgenError:
    return MmgenError(where, got=shown(value), wanted=getattr(hint, "__name__", str(hint)), remedy=AGAIN)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(hint, value, where)
    if origin is Literal:
        if not any(type(value) is type(arg) and value == arg for arg in args):
            raise MmgenError(
                where, got=shown(value), wanted=" or ".join(map(repr, args)), remedy="update mmgen, or export again"
            )
        return value
    if origin is tuple:
        if not isinstance(value, list) or (args[-1] is not Ellipsis and len(value) != len(args)):
            raise _wrong(hint, value, where)
        each = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_convert(h, v, f"{where}[{i}]") for i, (h, v) in enumerate(zip(each, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(hint, value, where)
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(hint, value, where)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        return float(value)  # of at most ``DIGITS`` digits
    if type(value) is not hint:
        raise _wrong(hint, value, where)
    return value


def _convert_union(hint: Any, value: Any, where: str) -> Any:
    args = typing.get_args(hint)
    if value is None and type(None) in args:
        return None
    choices = [a for a in args if a is not type(None)]
    kinds = {a.kind: a for a in choices if dataclasses.is_dataclass(a) and hasattr(a, "kind")}
    if kinds:  # dataclasses told apart by their ``kind``
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in kinds:
            raise MmgenError(
                f"{where}: kind",
                got=shown(kind),
                wanted=" or ".join(map(repr, kinds)),
                remedy="update mmgen, or export again",
            )
        return from_json(kinds[kind], value, where)  # type: ignore[arg-type]
    for choice in choices:
        try:
            return _convert(choice, value, where)
        except MmgenError:
            continue
    raise _wrong(hint, value, where)
