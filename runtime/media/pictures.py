"""Pictures of any kind that Pillow knows, and masks."""

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.files.numpy_files import MAGIC
from mmgen.runtime.media.arrays import array_in
from mmgen.runtime.media.importing import pillow
from mmgen.runtime.media.source import File, Source, opened

LIGHT = 128  # of 256 levels
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of grey in 16 bits
KEYWORD = "mmgen"  # of the text in a PNG file that says how it was made, as JSON
JPEG_QUALITY = 95  # Pillow's highest that its manual recommends; colours are not averaged over neighbours
RESIZE = "resize it first, or ask for that (--resize)"


def read_picture(file: File, height: int, width: int, fit: bool) -> NDArray[np.uint8]:
    """Read a picture (height, width, 3): upright as the camera was held, with transparent parts over white.

    Of an animation the first frame is read.  A picture of another size is resized with ``fit``, as a whole, so that its
    proportions may change: by bicubic interpolation, antialiased where it shrinks.

    Raises:
        MmgenError: a file that can't be read as a picture, or one of another size.
    """
    size = (width, height)
    with open_picture(file, "picture") as picture:
        if not fit:
            check_size(file, picture.size, size, turned=True)  # before anything is unpacked
        upright = _upright(picture)
        if not fit:
            check_size(file, upright.size, size)
        return on_white(upright, size)


def read_mask(source: Source) -> NDArray[np.bool_]:
    """Read a mask: the bools in a .npy file, or bool (H, W) of a picture.

    A pixel is true if it is neither darker than half, in Pillow's weights of the colours, nor more than half
    transparent.

    Raises:
        MmgenError: a file that can't be read as one.
    """
    with opened(source, "a picture, or bools in a .npy file") as file:
        if file.name.endswith(".npy") or file.start(len(MAGIC)) == MAGIC:
            return array_in(file)
        with open_picture(file, "picture") as picture:
            pixels = np.asarray(_upright(picture).convert("RGBA").convert("LA"))
    light, opaque = np.moveaxis(pixels >= LIGHT, -1, 0)
    return np.asarray(light & opaque)


def check_size(file: File, size: tuple[int, int], wanted: tuple[int, int], turned: bool = False) -> None:
    """Check the (width, height) of a picture or a film; ``turned``: it may yet be turned by a quarter.

    Raises:
        MmgenError: it has another one.
    """
    if size != wanted and not (turned and size == wanted[::-1]):
        raise file.differs(f"{size[0]} x {size[1]} pixels", RESIZE)


def on_white(picture: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Lay a picture of Pillow's over white and return uint8 (H, W, 3), resized if its (width, height) is another."""
    with_alpha = picture.convert("RGBA")
    if with_alpha.size != size:
        with_alpha = with_alpha.resize(size, pillow().Image.Resampling.BICUBIC)
    pixels = np.asarray(with_alpha).astype(np.uint16)
    alpha = pixels[..., 3:]
    mixed = pixels[..., :3] * alpha + 255 * (255 - alpha)
    white: NDArray[np.uint8] = ((mixed + 127) // 255).astype(np.uint8)  # rounded: 255 is odd, so no half
    return white


def resized(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize pixels uint8 (H, W, 3) to another (width, height), as pictures are."""
    if pixels.shape[1::-1] == size:
        return pixels
    image = pillow().Image
    return np.asarray(image.fromarray(pixels).resize(size, image.Resampling.BICUBIC))


def picture_file(picture: NDArray[np.uint8], suffix: str, note: Mapping[str, Any] | None) -> bytes:
    """Return uint8 (H, W, 3) as a .png, .jpg or .webp file; a PNG keeps ``note``.  PNG and WebP lose nothing."""
    pil = pillow(f"{suffix} files are written", "write a .npy file")
    options: dict[str, Any] = {}
    match suffix:
        case ".png":
            options = {"format": "png", "pnginfo": pil.PngImagePlugin.PngInfo()}
            if note is not None:
                options["pnginfo"].add_itxt(KEYWORD, json.dumps(note))
        case ".jpg":
            options = {"format": "jpeg", "quality": JPEG_QUALITY, "subsampling": 0}
        case ".webp":
            options = {"format": "webp", "lossless": True}
    content = io.BytesIO()
    pil.Image.fromarray(picture).save(content, **options)
    return content.getvalue()


@contextmanager
def open_picture(file: File, what: str, formats: Sequence[str] | None = None) -> Iterator[Any]:
    """Open a picture, which isn't unpacked yet; what Pillow finds wrong in the block is an error about the file.

    Args:
        what: it is to be, for errors.
        formats: Pillow's names of those that it may have; None: any.
    """
    pil = pillow(f"{file.name}: {what}s are read")
    file.content.seek(0)
    with file.reading(f"it is no {what} that Pillow knows"), warnings.catch_warnings():
        warnings.simplefilter("error", pil.Image.DecompressionBombWarning)
        with pil.Image.open(file.content, formats=formats) as picture:
            if picture.format == "EPS":  # for which Pillow would start Ghostscript
                raise ValueError("it is a program in PostScript")
            if picture.mode == "F":  # which may mean anything
                raise ValueError("its pixels are floats, without a white")
            yield picture


def _upright(picture: Any) -> Any:
    """Turn a picture as the camera's orientation says, and make 16 bits of grey 8."""
    pil = pillow()
    upright = pil.ImageOps.exif_transpose(picture)
    if upright.mode in DEEP:  # Pillow would make 255 of all that is more
        return pil.Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
    return upright
