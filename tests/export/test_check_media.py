"""What a model says of its media's numbers must be something that a program can use."""

import dataclasses

import pytest
from policy import policy

from mmgen.export.base.model import Model
from mmgen.export.check import check
from mmgen.runtime.base.errors import MmgenError


@pytest.fixture(scope="module")
def model() -> Model:
    return policy()


def saying(model: Model, **changes: object) -> Model:
    return dataclasses.replace(model, media=dataclasses.replace(model.media, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [{}, {"rate": 50.0, "range": (-1.0, 1.0)}, {"rate": 24, "range": (0, 255)}])
def test_a_rate_and_a_range_may_be_said(model: Model, said: dict[str, object]) -> None:
    check(saying(model, **said))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rate": 0.0}, r"media: rate, got 0\.0, wanted more than 0 a second"),
        ({"rate": float("inf")}, "media: rate, got inf"),
        ({"rate": "24"}, "media: rate, got '24'"),
        ({"range": (1.0, -1.0)}, r"media: range, got \(1\.0, -1\.0\), wanted the least and the largest value"),
        ({"range": (0.0, 0.5, 1.0)}, "media: range, got"),
        ({"range": 1.0}, r"media: range, got 1\.0"),
        ({"range": (0.0, float("nan"))}, "media: range, got nan, wanted finite numbers"),
    ],
)
def test_what_none_could_be_is_refused_before_the_work(model: Model, said: dict[str, object], words: str) -> None:
    with pytest.raises(MmgenError, match=f"^{words}"):
        check(saying(model, **said))
