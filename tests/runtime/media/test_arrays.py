"""Numpy's arrays as media of any kind, and files that are none."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import MmgenError
from mmgen.runtime.media.arrays import read_array
from mmgen.runtime.media.pictures import read_mask
from mmgen.runtime.media.read import read_media
from mmgen.runtime.media.write import media_file, suffixes
from mmgen.runtime.storage.schema import Media

PICTURE = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
STROKE = np.zeros((8, 8), bool)
KINDS = [
    Media("image", (10, 14, 3), "uint8"),
    Media("video", (2, 10, 14, 3), "uint8", rate=8.0),
    Media("audio", (50, 2), "float32", rate=16_000.0),
    Media("series", (5, 2), "float32", labels=("x", "y")),
    Media("text", (7,), "int64"),
    Media("codes", (4, 4), "int64"),
    Media("array", (16, 2), "float32"),
]


def numbers(media: Media, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, (count, *media.shape)).astype(media.dtype)


@pytest.mark.parametrize("media", KINDS, ids=lambda media: media.kind)
@pytest.mark.parametrize("count", [1, 3])
def test_every_kind_is_written_and_read_as_an_array(media: Media, count: int) -> None:
    samples = numbers(media, count)
    content = media_file(samples, ".npy", media)
    assert np.array_equal(np.load(io.BytesIO(content)), samples) and ".npy" in suffixes(media)
    made = read_media(content, media)
    assert made.dtype == media.dtype and np.array_equal(made, samples[0] if count == 1 else samples)
    assert np.array_equal(read_media(saved(samples[0]), media), samples[0])


@pytest.mark.parametrize("media", KINDS, ids=lambda media: media.kind)
def test_an_array_of_another_shape_is_refused_and_both_are_named(media: Media) -> None:
    for wrong in (media.shape[1:], (*media.shape, 1), (2, 2, *media.shape), (media.shape[0] + 1, *media.shape[1:])):
        with pytest.raises(MmgenError) as caught:
            read_media(saved(np.zeros(wrong, media.dtype)), media)
        assert str(wrong) in str(caught.value) and str(media.shape) in str(caught.value)


def test_numbers_of_another_type_are_read_where_they_can_be() -> None:
    made = read_media(saved(np.arange(32.0).reshape(16, 2)), KINDS[-1])
    assert made.dtype == np.float32 and np.array_equal(made.ravel(), np.arange(32))
    for wrong, said in ((np.full((16, 2), np.nan), "NaN or infinity"), (np.zeros((16, 2), "c8"), "<c8")):
        with pytest.raises(MmgenError, match=said):
            read_media(saved(wrong), KINDS[-1])
    with pytest.raises(MmgenError, match="numbers that uint8 doesn't have"):
        read_media(saved(PICTURE.astype(int) + 1), KINDS[0])
    with pytest.raises(MmgenError, match="got float64"):
        read_media(saved(PICTURE / 255), KINDS[0])


@pytest.mark.parametrize("media", KINDS[4:], ids=lambda media: media.kind)
def test_other_media_come_from_arrays_alone(media: Media) -> None:
    with pytest.raises(MmgenError, match=rf"media of kind {media.kind}, wanted a \.npy file of {media.dtype} \("):
        read_media(b"RIFF....WAVE", media)


@pytest.mark.parametrize("media", [media for media in KINDS if media.dtype == "float32"], ids=lambda media: media.kind)
def test_what_is_not_finite_is_never_written(media: Media) -> None:
    samples = numbers(media, 1)
    samples[0, -1, -1] = np.inf
    for suffix in suffixes(media):
        with pytest.raises(MmgenError, match=f"media of kind {media.kind}, got NaN or infinity, wanted finite"):
            media_file(samples, suffix, media)


@pytest.mark.parametrize("array", [PICTURE, STROKE, np.asfortranarray(np.eye(3)), np.float16(1), np.zeros(2, ">i4")])
def test_arrays_come_back(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    for made in (read_array(tmp_path / "a.npy"), read_mask(tmp_path / "a.npy"), read_array(saved(array))):
        assert made.dtype == array.dtype and np.array_equal(made, array)


def archive() -> bytes:
    content = io.BytesIO()
    np.savez(content, a=PICTURE)
    return content.getvalue()


def saved(array: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.npy is empty"),
        (b"1, 2, 3", "a.npy is no .npy file"),
        (b"\x80\x04K\x01.", "a.npy is no .npy file"),
        (archive(), "a.npy is an archive of arrays"),
        (saved(np.array([1, None]), allow_pickle=True), "no array of numbers (it holds '|O'), wanted"),
        (saved(np.array(["a"])), "(it holds '<U1'), wanted a .npy file of numbers"),
        (saved(np.zeros(3, [("x", "f4")])), "(its header is \"{'descr': [('x', '<f4')]"),
        (saved(np.array([1j])), "(it holds '<c16'), wanted"),
        (saved(np.zeros(1, "M8[s]")), "(it holds '<M8[s]'), wanted"),
        (saved(np.ones(3))[:-1], "a.npy is damaged, cut or no array"),
        (saved(np.ones(3))[:60], "a.npy is damaged, cut or no array"),
        (saved(np.ones(3))[:8], "a.npy is damaged, cut or no array"),
        (saved(np.ones(3)).replace(b"(3,)", b"(9" + b"9" * 20 + b",)"), "a.npy is damaged, cut or no array"),
        (saved(np.ones(3)).replace(b"<f8", b"<z8"), "a.npy is damaged, cut or no array"),
    ],
)
def test_what_is_no_array_of_numbers_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(MmgenError) as caught:
        read_array(tmp_path / "a.npy")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_numbers_cut_or_changed_anywhere_is_an_error_or_an_array(tmp_path: Path) -> None:
    whole = saved(np.arange(3, dtype=np.int16))
    for at in range(len(whole)):
        for content in (whole[:at], whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]):
            (tmp_path / "a.npy").write_bytes(content)
            try:
                read_array(tmp_path / "a.npy")
            except MmgenError as error:
                assert "\n" not in str(error)


def test_a_folder_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(MmgenError, match=r"a\.npy can't be read \(Is a directory\)"):
        read_array(tmp_path / "a.npy")
