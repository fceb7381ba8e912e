"""Conversion of arrays and lists of numbers to another type, where that changes none of them beyond rounding."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, said, shown

TAKEN = {"f": "iuf", "i": "iub", "u": "iub", "b": "iub"}  # kinds of numpy's types, by the kind of the type they become


def as_array(what: str, value: object, dtype: str, wanted: str) -> NDArray[Any]:
    """Convert a value to an array of a type.

    Floats take whole numbers, which are rounded; whole numbers take bools, as masks are often given, and no floats.

    Args:
        what: the array, as the user knows it.
        value: an array, or lists of numbers.
        wanted: what is accepted, for the error.

    Raises:
        MmgenError: not an array of numbers; NaN or infinity; a number that the type can't hold.
    """
    try:
        array = np.asarray(value)
    except Exception as error:  # lists of different lengths, and what the class of an object raises
        raise MmgenError(what, got=shown(value), wanted=wanted) from error
    target = np.dtype(dtype)
    if array.dtype.kind not in TAKEN[target.kind]:
        raise MmgenError(what, got=said(array) if array.dtype.kind in "biufc" else shown(value), wanted=wanted)
    try:
        with np.errstate(over="ignore"):
            made = array.astype(target)
        wrong = "NaN or infinity" if target.kind == "f" and not np.isfinite(made).all() else None
        if target.kind != "f" and not np.array_equal(made, array):
            wrong = f"numbers that {dtype} doesn't have"
    except MemoryError:
        wrong = f"{said(array)}, which is larger than the memory"
    if wrong:
        raise MmgenError(what, got=wrong, wanted=wanted)
    return made
