"""Nulls of array conditions, which guidance starts from: a number that fills the array, or a file of the bundle."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.arrays import as_array
from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.media.arrays import npy, read_array
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import Bundle, Condition

FOLDER = "nulls"


def null_array(condition: Condition, null: object, what: str) -> NDArray[Any]:
    """Return the null of an array condition, of its type and shape.

    Args:
        null: a number, or an array of this shape.
        what: begins the error message.

    Raises:
        MmgenError: another shape, or numbers that aren't finite or that the type can't hold.
    """
    wanted = f"a number, or {condition.dtype} {condition.shape}, finite"
    array = as_array(what, null, condition.dtype, wanted)
    if array.ndim and array.shape != condition.shape:
        raise MmgenError(what, got=said(array), wanted=wanted)
    return np.broadcast_to(array, condition.shape)


def write_nulls(conditions: tuple[Condition, ...], folder: Path) -> tuple[Condition, ...]:
    """Write nulls that are arrays into files, and return the conditions as a manifest has them.

    An array that is one number everywhere becomes that number.
    """
    return tuple(_written(condition, number, folder) for number, condition in enumerate(conditions))


def read_null(bundle: Bundle, condition: Condition) -> NDArray[Any]:
    """Read the null of an array condition of a bundle.

    Raises:
        MmgenError: its file can't be read, or isn't of the condition's type and shape.
    """
    file = condition.null_file
    null = condition.null if file is None else read_array(bundle.path(file))
    return null_array(condition, null, f"null of condition {condition.name!r}")


def _written(condition: Condition, number: int, folder: Path) -> Condition:
    if condition.kind in ("text", "class") or condition.null is None:
        return condition
    array = null_array(condition, condition.null, f"null of condition {condition.name!r}")
    if array.size and (array == array.flat[0]).all():
        one = array.flat[0].item()
        return dataclasses.replace(condition, null=int(one) if isinstance(one, bool) else one)
    file = folder / FOLDER / f"{number}-{condition.tensor}.npy"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(npy(array))
    return dataclasses.replace(condition, null=file.relative_to(folder).as_posix(), null_sha256=sha256(file))
