"""Files to start from: any picture that Pillow reads, masks as editors save them, and numpy's arrays."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import MmgenError
from mmgen.runtime.cli.png import png
from mmgen.runtime.request.media_files import read_array, read_mask, read_media
from mmgen.runtime.storage.schema import Media

PICTURE = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
SMOOTH = np.add.outer(np.arange(40), np.arange(30))[..., None].astype(np.uint8) * np.uint8([1, 2, 3])
STROKE = np.zeros((8, 8), bool)
STROKE[2:5, 2:5] = True
IMAGE = Media("image", (10, 14, 3), "uint8")


def read(path: Path) -> np.ndarray:
    return read_media(path, IMAGE)


@pytest.fixture
def image() -> Any:
    return pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")


# pictures


@pytest.mark.parametrize(("suffix", "options"), [
    ("png", {}), ("bmp", {}), ("tiff", {}), ("webp", {"lossless": True}), ("ppm", {}), ("tga", {}),
])  # fmt: skip
def test_a_picture_is_read_whatever_kind_it_is_of(
    image: Any, tmp_path: Path, suffix: str, options: dict[str, Any]
) -> None:
    image.fromarray(PICTURE).save(tmp_path / f"a.{suffix}", **options)
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), PICTURE)


@pytest.mark.parametrize(("mode", "limit"), [("RGB", 4), ("CMYK", 4), ("L", 3)])
def test_a_photograph_is_read(image: Any, tmp_path: Path, mode: str, limit: float) -> None:
    picture = image.fromarray(SMOOTH[:16, :16]).convert(mode)
    picture.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    wanted = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(read(tmp_path / "a.jpg") - wanted).mean() < limit


def test_a_camera_held_upright_has_its_picture_upright(image: Any, tmp_path: Path) -> None:
    sideways = image.fromarray(np.rot90(PICTURE))
    exif = sideways.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    sideways.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read(tmp_path / "a.png"), PICTURE)


def test_of_an_animation_the_first_frame_is_read(image: Any, tmp_path: Path) -> None:
    frames = [image.new("RGB", (14, 10), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (read(tmp_path / "a.gif") == [255, 0, 0]).all()


def test_sixteen_bits_are_read_as_eight(image: Any, tmp_path: Path) -> None:
    levels = np.arange(140, dtype=np.uint16).reshape(10, 14) * 467
    image.fromarray(levels).save(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png"), np.repeat((levels >> 8)[..., None], 3, 2))


def test_a_palette_and_one_bit_are_read(image: Any, tmp_path: Path) -> None:
    few = image.fromarray(PICTURE).quantize(16)
    few.save(tmp_path / "few.png")
    assert np.array_equal(read(tmp_path / "few.png"), np.asarray(few.convert("RGB")))
    image.fromarray(STROKE).save(tmp_path / "one.png")
    assert np.array_equal(read(tmp_path / "one.png")[..., 0], STROKE * np.uint8(255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_over_white(image: Any, tmp_path: Path, mode: str) -> None:
    picture = image.fromarray(np.concatenate([SMOOTH, 255 - SMOOTH[..., :1]], 2)).convert(mode)
    picture.save(tmp_path / "a.png")
    white = image.new("RGBA", picture.size, "white")
    wanted = np.asarray(image.alpha_composite(white, picture.convert("RGBA")).convert("RGB"))
    assert np.abs(read(tmp_path / "a.png").astype(int) - wanted).max() <= 1  # rounded in another order


def test_a_colour_that_stands_for_nothing_is_transparent(image: Any, tmp_path: Path) -> None:
    image.fromarray(STROKE * np.uint8(255)).save(tmp_path / "grey.png", transparency=0)
    assert (read(tmp_path / "grey.png") == 255).all()
    palette = image.fromarray(STROKE.astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 255, 255, 255])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (read(tmp_path / "palette.png") == 255).all()
    assert np.array_equal(read_mask(tmp_path / "palette.png"), STROKE)


def test_what_is_written_here_is_read_here(image: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PICTURE, {"mmgen": "text"}))
    assert np.array_equal(read(tmp_path / "a.png"), PICTURE)


# masks


@pytest.mark.parametrize(
    ("on", "off", "mode", "set_"),
    [
        ((255, 255, 255, 255), (0, 0, 0, 0), "RGBA", True),
        ((255, 255, 255, 255), (255, 255, 255, 0), "RGBA", True),
        ((255, 255), (0, 0), "LA", True),
        ((255, 255, 255), (0, 0, 0), "RGB", True),
        ((255, 255, 255, 255), (0, 0, 0, 255), "RGBA", True),
        ((0, 255, 0), (0, 0, 0), "RGB", True),  # luma 150
        ((255, 0, 255), (0, 0, 0), "RGB", False),  # luma 105
        ((128,), (127,), "L", True),
        ((127,), (0,), "L", False),
        ((255, 255, 255, 127), (0, 0, 0, 0), "RGBA", False),
        ((255, 255, 255, 128), (0, 0, 0, 0), "RGBA", True),
        ((0, 0, 0, 255), (0, 0, 0, 0), "RGBA", False),
    ],
)
def test_a_mask_is_where_a_picture_is_light_and_there(
    image: Any, tmp_path: Path, on: tuple[int, ...], off: tuple[int, ...], mode: str, set_: bool
) -> None:
    pixels = np.where(STROKE[..., None], np.uint8(on), np.uint8(off)).astype(np.uint8)
    image.fromarray(pixels.squeeze(), mode).save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png"), STROKE & set_)


@pytest.mark.parametrize("kind", ["1", "P", "I;16", "webp", "gif"])
def test_masks_of_other_kinds(image: Any, tmp_path: Path, kind: str) -> None:
    white = image.fromarray(STROKE * np.uint8(255))
    deep = image.fromarray(STROKE * np.uint16(65535))
    file = tmp_path / ("mask.png" if kind in ("1", "P", "I;16") else f"mask.{kind}")
    {"I;16": deep, "webp": white, "gif": white}.get(kind, white.convert("1" if kind == "1" else "P")).save(file)
    assert np.array_equal(read_mask(file), STROKE)


# what can't be read


def test_without_pillow_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(png(PICTURE))
    monkeypatch.setitem(sys.modules, "PIL", None)
    for reader in (read, read_mask):
        with pytest.raises(MmgenError, match=r"a\.png: pictures are read with the package Pillow; pip .*\[images"):
            reader(tmp_path / "a.png")


def test_a_cut_picture_is_an_error_and_never_a_picture(image: Any, tmp_path: Path) -> None:
    content = io.BytesIO()
    image.fromarray(PICTURE).save(content, "jpeg")
    for name, whole in (("a.png", png(PICTURE)), ("a.jpg", content.getvalue())):
        for end in range(0, len(whole) - 20, 7):
            (tmp_path / name).write_bytes(whole[:end])
            with pytest.raises(MmgenError, match=rf"{name} can't be read .*, wanted a picture of 14 x 10, or a \.npy"):
                read(tmp_path / name)


def test_a_changed_picture_is_an_error_or_a_picture(image: Any, tmp_path: Path) -> None:
    whole, refused = png(PICTURE[:4, :4]), 0
    for at in range(len(whole)):
        (tmp_path / "a.png").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read(tmp_path / "a.png")
        except MmgenError as error:
            refused += 1
            assert "a.png can't be read" in str(error)
    assert refused > len(whole) / 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no picture that Pillow knows"),
        (b"some text", "it is no picture that Pillow knows"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "it is a program in PostScript"),
    ],
)
def test_what_is_no_picture_is_said(image: Any, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(MmgenError, match=message):
        read(tmp_path / "a.png")


def test_a_folder_and_nothing_are_no_pictures(image: Any, tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=r"can't be read \(Is a directory\)"):
        read(tmp_path)
    with pytest.raises(MmgenError, match=r"nothing\.png can't be read \(No such file or directory\)"):
        read_mask(tmp_path / "nothing.png")


def test_floats_are_no_picture(image: Any, tmp_path: Path) -> None:
    image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(MmgenError, match="its pixels are floats"):
        read(tmp_path / "a.tiff")


def test_a_picture_larger_than_any_is_not_unpacked(image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    for side in (14, 20):  # Pillow only warns of the smaller one
        (tmp_path / "a.png").write_bytes(png(np.zeros((10, side, 3), np.uint8)))
        with pytest.raises(MmgenError, match="decompression bomb"):
            read(tmp_path / "a.png")


def test_media_that_are_no_pictures_come_from_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PICTURE))
    with pytest.raises(MmgenError, match=r"media of kind array, wanted a \.npy file of float32 \(16, 2\)"):
        read_media(tmp_path / "a.png", Media("array", (16, 2), "float32"))


# arrays


@pytest.mark.parametrize("array", [PICTURE, STROKE, np.asfortranarray(np.eye(3)), np.float16(1), np.zeros(2, ">i4")])
def test_arrays_come_back(tmp_path: Path, array: Any) -> None:
    np.save(tmp_path / "a.npy", array)
    for made in (read_array(tmp_path / "a.npy"), read_mask(tmp_path / "a.npy"), read(tmp_path / "a.npy")):
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
