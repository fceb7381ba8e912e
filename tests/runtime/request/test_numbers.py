"""Numbers and arrays are taken for what they are, or refused in one line that says what was wanted."""

import fractions
import math
from typing import Any

import numpy as np
import pytest
from given import NO_NUMBERS, STATE, Odd

from mmgen.runtime import MmgenError
from mmgen.runtime.base.arrays import as_array
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.request.conditions import values
from mmgen.runtime.storage.schema import Condition

# numbers


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), np.array(3), np.array(3, np.int16)])
def test_a_whole_number_is_whole(value: Any) -> None:
    got = whole("count", value, "a whole number", 1, 3)
    assert got == 3 and type(got) is int
    assert real("guidance", value, "a number") == 3.0


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), fractions.Fraction(1, 2)])
def test_a_real_number_is_no_whole_one(value: Any) -> None:
    got = real("guidance", value, "a number")
    assert got == 0.5 and type(got) is float
    with pytest.raises(MmgenError, match=r"count, got .*, wanted a whole number$"):
        whole("count", value, "a whole number")


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_nothing_else_is_a_number(value: Any) -> None:
    for check in (whole, real):
        with pytest.raises(MmgenError, match=r"n, got .*, wanted a number") as caught:
            check("n", value, "a number")
        assert len(str(caught.value)) < 150


@pytest.mark.parametrize("value", [2.0, np.float64(2), 10**400, -1, 0])
def test_a_whole_number_out_of_its_range(value: Any) -> None:
    with pytest.raises(MmgenError, match=r"count, got .*, wanted"):
        whole("count", value, "a whole number, at least 1", 1, 100)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400, np.float32("nan")])
def test_a_real_number_is_finite(value: Any) -> None:
    with pytest.raises(MmgenError, match=r"guidance, got .*, wanted a number"):
        real("guidance", value, "a number")


# arrays


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([0.1, 0.2, 0.3], [[0.1, 0.2, 0.3]]),
        ((1, 2, 3), [[1, 2, 3]]),
        ([[1, 2, 3]], [[1, 2, 3]]),
        ([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]),
        ([np.arange(3), np.ones(3)], [[0, 1, 2], [1, 1, 1]]),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.arange(3, dtype=">f8"), [[0, 1, 2]]),
    ],
)
def test_a_list_whose_shape_fits_is_one_value_and_a_list_of_them_a_batch(given: Any, wanted: list[list[float]]) -> None:
    made = values(STATE, given)
    assert all(array.dtype == np.float32 for array in made)
    np.testing.assert_allclose(made, wanted, rtol=1e-6)


def test_an_array_without_axes_is_a_number() -> None:
    number = Condition("speed", "array", shape=())
    assert values(number, 0.5) == [0.5] and values(number, [0.5, 1]) == [0.5, 1.0]
    assert values(number, np.float16(0.5)) == [0.5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], r"condition 'state', got float32 \(2,\), wanted float32 \(3,\), or \(n, \.\.\.\) for n samples"),
        (0.5, r"got float32 \(\), wanted float32 \(3,\)"),
        ([[1, 2, 3], [4, 5]], r"got \[\[1, 2, 3\], \[4, 5\]\], wanted float32 \(3,\)"),
        ([], r"got float32 \(0,\), wanted"),
        (np.zeros((0, 3)), "condition 'state' is an empty list"),
        (["1", "2", "3"], r"got \['1', '2', '3'\], wanted float32"),
        ([1, 2, None], r"got \[1, 2, None\], wanted float32"),
        ([1, 2, math.nan], "got NaN or infinity"),
        ([1, 2, 1e300], "got NaN or infinity"),
        ([1, 2, 10**400], "wanted float32"),
        ([1j, 2, 3], r"got complex128 \(3,\), wanted float32"),
        ([True, False, True], r"got bool \(3,\), wanted float32"),
        (Odd(), "got Odd, which can't be shown"),
        ({"a": 1}, r"got \{'a': 1\}, wanted float32"),
    ],
)  # fmt: skip
def test_what_is_no_array_of_the_shape_is_refused(given: Any, message: str) -> None:
    with pytest.raises(MmgenError, match=message):
        values(STATE, given)


@pytest.mark.parametrize(
    ("given", "dtype", "wanted"),
    [
        ([True, False], "int64", [1, 0]),
        ([0, 255], "uint8", [0, 255]),
        ([1, 0], "bool", [True, False]),
        (np.array([1, 2], np.uint64), "int8", [1, 2]),
        ([1, 2], "float16", [1.0, 2.0]),
    ],
)
def test_numbers_go_over_where_nothing_is_lost(given: Any, dtype: str, wanted: list[Any]) -> None:
    made = as_array("x", given, dtype, dtype)
    assert made.dtype == np.dtype(dtype) and made.tolist() == wanted


@pytest.mark.parametrize(
    ("given", "dtype"),
    [([0, 256], "uint8"), ([-1, 1], "uint8"), ([0, 2], "bool"), ([0.0, 1.0], "int64"), ([1, 70000], "float16"),
     ([2**40, 1], "int32"), ([0.5], "bool")],
)  # fmt: skip
def test_numbers_that_a_type_does_not_have_are_refused(given: Any, dtype: str) -> None:
    with pytest.raises(MmgenError, match=r"x, got .*, wanted"):
        as_array("x", given, dtype, dtype)
