"""What tests give for an argument: values that are no numbers, and the condition that takes an array."""

import datetime
from typing import Any

import numpy as np

from mmgen.runtime.storage.schema import Condition


class Odd:
    """Raises at every turn."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = object.__hash__

    def __array__(self, *_: object, **__: object) -> Any:
        raise RuntimeError("no")


NO_NUMBERS = [
    True, False, np.bool_(True), np.array(True), None, "2", b"2", np.str_("2"), np.array("2"), 1j, np.complex64(1), [2],
    (2,), {2}, np.array([2]), np.array([2, 3]), np.array([]), np.array(None), np.zeros(1, "M8[s]"), object(), Odd(),
    int, datetime.timedelta(1), ..., range(2), iter([2]),
]  # fmt: skip

STATE = Condition("state", "array", shape=(3,))
