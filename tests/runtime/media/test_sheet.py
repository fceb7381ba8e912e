"""Several pictures or films on one."""

import numpy as np
import pytest

from mmgen.runtime.media.sheet import sheet

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 7, 9, 3), np.uint8)


@pytest.mark.parametrize(("count", "columns"), [(2, 2), (3, 3), (4, 2), (5, 5), (7, 4), (8, 4), (9, 3), (12, 4)])
def test_a_sheet_leaves_as_few_places_empty_as_it_can(count: int, columns: int) -> None:
    page = sheet(np.zeros((count, 10, 10, 3), np.uint8), gap=0)
    assert page.shape == (-(-count // columns) * 10, columns * 10, 3)


def test_pictures_lie_row_by_row_on_white() -> None:
    page = sheet(PICTURES, columns=3, gap=2)
    assert page.shape == (7 + 2 + 7, 9 + 2 + 9 + 2 + 9, 3)
    assert np.array_equal(page[:7, 11:20], PICTURES[1])
    assert np.array_equal(page[9:, :9], PICTURES[3])
    assert (page[7:9] == 255).all() and (page[9:, 22:] == 255).all()


def test_one_picture_is_its_own_sheet() -> None:
    assert np.array_equal(sheet(PICTURES[:1]), PICTURES[0])


def test_films_play_side_by_side() -> None:
    films = np.random.default_rng(1).integers(0, 256, (3, 4, 7, 9, 3), np.uint8)
    page = sheet(films, columns=3, gap=2)
    assert page.shape == (4, 7, 9 + 2 + 9 + 2 + 9, 3)
    for frame in range(4):
        assert np.array_equal(page[frame], sheet(films[:, frame], columns=3, gap=2))
