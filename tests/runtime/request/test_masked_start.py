"""Tokens that start from something: codes of which a share is masked, or of which a mask keeps a part."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_tokens import CODES, GRID, PROCESS, tiny_token_model

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.request.noise import uniform
from mmgen.runtime.solvers.masked import table

GIVEN = np.random.default_rng(0).integers(0, CODES, (1, *GRID))
LEFT = np.arange(GRID[1]) < 4  # what is regenerated
ASKED: dict[str, Any] = {"label": 3, "seed": 5, "steps": 6}


@pytest.fixture(scope="module")
def generator(exported_once: Callable[..., Path]) -> Iterator[Generator]:
    with load(exported_once(tiny_token_model), "ort-cpu", threads=1) as opened:
        yield opened


@pytest.mark.parametrize("solver", ["maskgit", "amused", "mdlm", "llada"])
def test_codes_that_are_kept_stay(generator: Generator, solver: str) -> None:
    result = generator.generate(**ASKED, solver=solver, latents=GIVEN, mask=LEFT)
    np.testing.assert_array_equal(result.latents[..., ~LEFT], GIVEN[..., ~LEFT])
    assert (result.latents[..., LEFT] != GIVEN[..., LEFT]).mean() > 0.5
    assert result.latents.max() < CODES


def test_what_is_behind_the_mask_isnt_seen(generator: Generator) -> None:
    other = np.where(LEFT, (GIVEN + 1) % CODES, GIVEN)
    one, two = (generator.generate(**ASKED, latents=codes, mask=LEFT).latents for codes in (GIVEN, other))
    np.testing.assert_array_equal(one, two)
    moved = np.where(LEFT, GIVEN, (GIVEN + 1) % CODES)
    assert (generator.generate(**ASKED, latents=moved, mask=LEFT).latents != one)[..., LEFT].any()


@pytest.mark.parametrize("solver", ["maskgit", "amused", "mdlm", "llada"])
@pytest.mark.parametrize(("strength", "begin"), [(0.5, 3), (0.2, 5), (1.0, 0)])
def test_strength_masks_the_share_that_is_masked_before_the_first_row(
    generator: Generator, solver: str, strength: float, begin: int
) -> None:
    rows = table(solver, PROCESS, 36, 6, begin=begin)
    masked = uniform(5, 1, GRID, 0) < rows.masked_before[0]
    result = generator.generate(**ASKED, solver=solver, latents=GIVEN, strength=strength)
    assert result.evaluations == len(rows) == 6 - begin + (solver == "mdlm")
    np.testing.assert_array_equal(result.latents[~masked], GIVEN[~masked])
    assert masked.all() == (strength == 1)


def test_all_masked_is_a_plain_request(generator: Generator) -> None:
    plain = generator.generate(**ASKED).latents
    np.testing.assert_array_equal(generator.generate(**ASKED, latents=GIVEN, strength=1.0).latents, plain)
    np.testing.assert_array_equal(generator.generate(**ASKED, latents=GIVEN, mask=np.ones(GRID, bool)).latents, plain)


def test_a_picture_is_its_codes(generator: Generator) -> None:
    """The codes by the encoder in torch."""
    picture = np.random.default_rng(1).integers(0, 256, (12, 12, 3)).astype(np.uint8)
    encoder = tiny_token_model().encoder
    assert encoder is not None
    with torch.no_grad():
        codes = encoder(torch.from_numpy(picture[None]).permute(0, 3, 1, 2) / 127.5 - 1).numpy()
    of_picture = generator.generate(**ASKED, image=picture, mask=LEFT)
    np.testing.assert_array_equal(of_picture.latents, generator.generate(**ASKED, latents=codes, mask=LEFT).latents)
    np.testing.assert_array_equal(of_picture.latents[..., ~LEFT], codes[..., ~LEFT])
    assert of_picture.timings.encode > 0


def test_pixels_choose_positions(generator: Generator) -> None:
    pixels = np.zeros((12, 12), bool)
    pixels[:, :7] = True  # two pixels a position
    by_pixels = generator.generate(**ASKED, latents=GIVEN, mask=pixels)
    np.testing.assert_array_equal(
        by_pixels.latents, generator.generate(**ASKED, latents=GIVEN, mask=LEFT).latents
    )


def test_a_deadline_leaves_every_block_a_step(generator: Generator) -> None:
    asked = {**ASKED, "solver": "llada", "options": {"blocks": 3}}
    result = generator.generate(**asked | {"steps": 12}, deadline=1e-9)
    assert result.steps == result.evaluations == 3 and not result.complete
    assert generator.generate(**asked | {"steps": 7}).evaluations == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latents": GIVEN.astype(np.float32)}, r"codes, got float32 \(1, 6, 6\), wanted int64 \(1, 6, 6\)"),
        ({"latents": GIVEN + CODES}, "codes, got .*, wanted 0 to 47"),
        ({"latents": np.repeat(GIVEN, 2, 0), "count": 2, "mask": np.stack([np.eye(6) > 0, np.eye(6) < 1])},
         "mask of a bundle that makes tokens, got one for each sample, wanted one for all"),
        ({"mask": LEFT}, "mask, got .*, wanted an image or latents to start from"),
        ({"image": np.zeros((6, 6, 3), np.uint8)}, r"image, got uint8 \(6, 6, 3\), wanted uint8 \(12, 12, 3\)"),
        ({"latents": GIVEN, "noise": np.zeros((1, *GRID), np.float32)}, "noise is of latents"),
    ],
)  # fmt: skip
def test_a_bad_start_is_one_clear_line(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**ASKED, **arguments)
    assert "\n" not in str(caught.value)
