"""Pictures of any kind that Pillow reads and writes, and masks as editors save them."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import png
from tolerances import LIMITS

from mmgen.runtime import MmgenError
from mmgen.runtime.media.pictures import KEYWORD, read_mask
from mmgen.runtime.media.read import read_media
from mmgen.runtime.media.write import media_file, write_media
from mmgen.runtime.storage.schema import Media

PICTURE = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
SMOOTH = np.add.outer(np.arange(40), np.arange(30))[..., None].astype(np.uint8) * np.uint8([1, 2, 3])
STROKE = np.zeros((8, 8), bool)
STROKE[2:5, 2:5] = True
IMAGE = Media("image", (10, 14, 3), "uint8")


def read(path: Path, height: int = 10, width: int = 14) -> np.ndarray:
    return read_media(path, Media("image", (height, width, 3), "uint8"))


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
    assert np.abs(read(tmp_path / "a.jpg", 16, 16) - wanted).mean() < limit


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
    assert np.array_equal(read(tmp_path / "one.png", 8, 8)[..., 0], STROKE * np.uint8(255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_laid_over_white(image: Any, tmp_path: Path, mode: str) -> None:
    picture = image.fromarray(np.concatenate([SMOOTH, 255 - SMOOTH[..., :1]], 2)).convert(mode)
    picture.save(tmp_path / "a.png")
    white = image.new("RGBA", picture.size, "white")
    wanted = np.asarray(image.alpha_composite(white, picture.convert("RGBA")).convert("RGB"))
    assert np.abs(read(tmp_path / "a.png", 40, 30).astype(int) - wanted).max() <= 1  # rounded in another order


def test_a_colour_that_stands_for_nothing_is_transparent(image: Any, tmp_path: Path) -> None:
    image.fromarray(STROKE * np.uint8(255)).save(tmp_path / "grey.png", transparency=0)
    assert (read(tmp_path / "grey.png", 8, 8) == 255).all()
    palette = image.fromarray(STROKE.astype(np.uint8), "P")
    palette.putpalette([9, 9, 9, 255, 255, 255])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert (read(tmp_path / "palette.png", 8, 8) == 255).all()
    assert np.array_equal(read_mask(tmp_path / "palette.png"), STROKE)


def test_the_bytes_of_a_file_are_as_good_as_its_name(image: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(PICTURE))
    for source in (png(PICTURE), str(tmp_path / "a.png"), tmp_path / "a.png"):
        assert np.array_equal(read_media(source, IMAGE), PICTURE)


@pytest.mark.parametrize("source", [None, 7, bytearray(b"x"), PICTURE])
def test_anything_else_is_not(source: Any) -> None:
    with pytest.raises(MmgenError, match=r"a file, got .*, wanted its name or its bytes: a picture of 14 x 10"):
        read_media(source, IMAGE)


# another size


@pytest.mark.parametrize("size", [(14, 11), (10, 14), (7, 5), (3000, 2000)])
def test_another_size_is_refused_and_both_are_named(image: Any, size: tuple[int, int]) -> None:
    content = png(np.zeros((*size[::-1], 3), np.uint8))
    with pytest.raises(MmgenError, match=rf"got {size[0]} x {size[1]} pixels, wanted a picture of 14 x 10, .*--resize"):
        read_media(content, IMAGE)


def test_a_camera_held_upright_has_a_picture_of_the_other_size(image: Any, tmp_path: Path) -> None:
    picture = image.fromarray(PICTURE)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    with pytest.raises(MmgenError, match="got 10 x 14 pixels"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(28, 20), (7, 5), (140, 30)])
def test_asked_for_the_whole_picture_is_resized_antialiased(image: Any, size: tuple[int, int]) -> None:
    width, height = size
    smooth = np.stack([np.broadcast_to(np.linspace(0, 255, n).reshape(s), (height, width)) for n, s in
                       ((width, (1, -1)), (height, (-1, 1)), (width, (1, -1)))], -1).astype(np.uint8)  # fmt: skip
    made = read_media(png(smooth), IMAGE, fit=True)
    wanted = np.asarray(image.fromarray(smooth).resize((14, 10), image.Resampling.BICUBIC))
    assert made.shape == (10, 14, 3) and np.array_equal(made, wanted)
    stripes = np.zeros((40, 56, 3), np.uint8)
    stripes[::2] = 255
    assert abs(read_media(png(stripes), IMAGE, fit=True).astype(int) - 128).max() < 16, "no moiré"


def test_what_is_transparent_leaves_no_colour_behind_when_resized(image: Any) -> None:
    pixels = np.zeros((20, 28, 4), np.uint8)
    pixels[:, :14] = (255, 0, 0, 255)
    pixels[:, 14:] = (0, 0, 255, 0)  # a blue that nobody sees
    made = read_media(png(pixels), IMAGE, fit=True)
    assert (made[..., 0] == 255).all() and np.array_equal(made[..., 1], made[..., 2])


# what is written


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_a_picture_comes_back_to_the_bit(image: Any, tmp_path: Path, suffix: str) -> None:
    write_media(tmp_path / f"a{suffix}", PICTURE[None], IMAGE)
    assert np.array_equal(np.asarray(image.open(tmp_path / f"a{suffix}").convert("RGB")), PICTURE)
    assert np.array_equal(read(tmp_path / f"a{suffix}"), PICTURE)


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.JPG"])
def test_a_jpeg_is_nearly_the_picture(image: Any, tmp_path: Path, name: str) -> None:
    smooth = SMOOTH[:10, :14]
    write_media(tmp_path / name, smooth[None], IMAGE)
    with image.open(tmp_path / name) as written:
        assert written.format == "JPEG"
        assert np.abs(np.asarray(written).astype(int) - smooth).max() <= LIMITS["JPEG levels"]


def test_a_png_says_how_it_was_made(image: Any) -> None:
    note = {"prompt": "café", "seed": 7}
    written = image.open(io.BytesIO(media_file(PICTURE[None], ".png", IMAGE, note=note)))
    written.load()
    assert json.loads(written.text[KEYWORD]) == note
    assert json.dumps({"prompt": "cat"}).encode() in media_file(PICTURE[None], ".png", IMAGE, note={"prompt": "cat"})
    assert image.open(io.BytesIO(media_file(PICTURE[None], ".png", IMAGE))).text == {}


def test_several_pictures_lie_on_a_sheet(image: Any) -> None:
    written = image.open(io.BytesIO(media_file(np.stack([PICTURE] * 3), ".png", IMAGE, columns=1)))
    assert np.array_equal(np.asarray(written)[14 * 2 : 14 * 2 + 10], PICTURE)


def test_a_sheet_that_is_too_large_for_a_kind_of_file_is_one_line(image: Any) -> None:
    wide = np.zeros((1, 1, 16_384, 3), np.uint8)
    with pytest.raises(MmgenError, match=r"media can't be written as a \.webp file .*; write a \.npy file"):
        media_file(wide, ".webp", Media("image", wide.shape[1:], "uint8"))


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
    said = r"a\.png: pictures are read with the package Pillow, got none; pip .*\[images"
    for reader in (read, read_mask):
        with pytest.raises(MmgenError, match=said):
            reader(tmp_path / "a.png")


def test_a_cut_picture_is_an_error_and_never_a_picture(image: Any, tmp_path: Path) -> None:
    content = io.BytesIO()
    image.fromarray(PICTURE).save(content, "jpeg")
    for name, whole in (("a.png", png(PICTURE)), ("a.jpg", content.getvalue())):
        for end in range(1, len(whole) - 20, 7):
            (tmp_path / name).write_bytes(whole[:end])
            with pytest.raises(MmgenError, match=rf"{name} can't be read .*, wanted a picture of 14 x 10, or a \.npy"):
                read(tmp_path / name)


def test_a_changed_picture_is_an_error_or_a_picture(image: Any, tmp_path: Path) -> None:
    whole, refused = png(PICTURE), 0
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
        (b"", "a.png is empty, wanted a picture of 14 x 10"),
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
    image.fromarray(np.ones((10, 14), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(MmgenError, match="its pixels are floats"):
        read(tmp_path / "a.tiff")


def test_a_picture_larger_than_any_is_not_unpacked(image: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 100)
    for side in (14, 20):  # Pillow only warns of the smaller one
        (tmp_path / "a.png").write_bytes(png(np.zeros((10, side, 3), np.uint8)))
        with pytest.raises(MmgenError, match="decompression bomb"):
            read(tmp_path / "a.png")
