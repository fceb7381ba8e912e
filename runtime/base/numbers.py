"""Numbers of a request: Python's and numpy's, also as arrays without axes, but not bools or texts."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from mmgen.runtime.base.errors import MmgenError, shown


def whole(
    what: str,
    value: object,
    wanted: str,
    least: int | None = None,
    most: int | None = None,
    *,
    remedy: str | None = None,
) -> int:
    """Return a value as a whole number.

    Args:
        what: the number, as the user knows it.
        wanted: what is accepted, except for ``most``, for the error.
        least, most: its range, both included; None: no limit.
        remedy: what to do, for the error.

    Raises:
        MmgenError: not a whole number (2.0 isn't one), or out of its range.
    """
    plain = _scalar(value)
    if isinstance(plain, numbers.Integral) and not isinstance(plain, bool):
        number = int(plain)
        if most is not None and number > most:
            wanted = f"at most {most}"
        elif least is None or number >= least:
            return number
    raise MmgenError(what, got=shown(value), wanted=wanted, remedy=remedy)


def real(
    what: str,
    value: object,
    wanted: str,
    fits: Callable[[float], bool] = math.isfinite,
    *,
    remedy: str | None = None,
) -> float:
    """Return a value as a real number.

    Args:
        what: the number, as the user knows it.
        wanted: what is accepted, for the error.
        fits: whether it is in its range; must be false for NaN, as comparisons are.
        remedy: what to do, for the error.

    Raises:
        MmgenError: not a real number, out of its range, or more than a float can hold.
    """
    plain = _scalar(value)
    if isinstance(plain, numbers.Real) and not isinstance(plain, bool):
        try:
            number = float(plain)
        except OverflowError:
            number = math.nan
        if fits(number):
            return number
    raise MmgenError(what, got=shown(value), wanted=wanted, remedy=remedy)


def _scalar(value: object) -> Any:
    """Return an array without axes as the number in it, and anything else as it is."""
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
