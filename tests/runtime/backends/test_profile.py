"""Which optimization profile holds a request."""

from pathlib import Path

import pytest

from mmgen.runtime.backends.tensorrt.profile import Ranges, choose, refusal
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Bundle, TensorSpec


def b(least: int, usual: int, largest: int) -> Ranges:
    """A profile of one input (B, 4)."""
    return {"x": ((least, 4), (usual, 4), (largest, 4))}


@pytest.mark.parametrize(
    ("profiles", "batch", "index"),
    [
        ([b(1, 1, 8)], 3, 0),
        ([b(1, 1, 1), b(1, 1, 8)], 1, 0),
        ([b(1, 1, 8), b(1, 1, 1)], 1, 1),
        ([b(1, 1, 1), b(1, 1, 8)], 2, 1),
        ([b(1, 1, 4), b(1, 4, 4)], 3, 1),
        ([b(1, 2, 4), b(1, 2, 4)], 2, 0),
        ([b(1, 1, 1), b(2, 4, 8)], 9, None),
        ([], 1, None),
    ],
)
def test_the_tightest_profile_that_holds_the_shapes(profiles: list[Ranges], batch: int, index: int | None) -> None:
    assert choose(profiles, {"x": (batch, 4)}) == index


def test_all_inputs_must_fit() -> None:
    profiles: list[Ranges] = [{"x": ((1,), (1,), (8,)), "y": ((1,), (1,), (2,))}]
    assert choose(profiles, {"x": (8,), "y": (2,)}) == 0
    assert choose(profiles, {"x": (8,), "y": (3,)}) is None


SPECS = (TensorSpec("state", "float32", (4, "B", 2)), TensorSpec("guidance", "float32", ("G",)))


def ranges(batch: tuple[int, int], guides: tuple[int, int]) -> Ranges:
    return {
        "state": ((4, batch[0], 2), (4, batch[0], 2), (4, batch[1], 2)),
        "guidance": ((guides[0],), (guides[0],), (guides[1],)),
    }


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    """Its axes: B 1:1:8, G 1:2:4."""
    return read_bundle(bundle_folder)


def test_a_refusal_names_the_axis(bundle: Bundle) -> None:
    profiles = [ranges((1, 1), (2, 2)), ranges((1, 8), (1, 2))]
    shapes = {"state": (4, 9, 2), "guidance": (2,)}
    assert str(refusal("step", bundle, SPECS, profiles, shapes)) == (
        "step: axis B, got 9, wanted 1 to 8; ask for fewer samples at once, or "
        f"mmgen build {bundle.folder} --axis B=1:1:9"
    )


def test_a_refusal_of_rows_says_how_many_samples_they_are(bundle: Bundle) -> None:
    rows = (TensorSpec("label", "int64", ("R",)),)
    profiles: list[Ranges] = [{"label": ((1,), (2,), (16,))}]
    assert str(refusal("condition", bundle, rows, profiles, {"label": (18,)})).endswith("--axis B=1:1:9")
    assert str(refusal("condition", bundle, rows, profiles, {"label": (17,)})).endswith("--axis B=1:1:17")


def test_a_refusal_of_axes_that_do_not_go_together_names_all(bundle: Bundle) -> None:
    profiles = [ranges((1, 1), (1, 2)), ranges((2, 8), (2, 2))]
    shapes = {"state": (4, 4, 2), "guidance": (1,)}
    assert str(refusal("step", bundle, SPECS, profiles, shapes)) == (
        f"step: axes, got B=4, G=1, wanted B=1, G=1 to 2 or B=2 to 8, G=2; mmgen build {bundle.folder}"
    )
