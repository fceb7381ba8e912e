"""Media and masks from files: pictures of any kind that Pillow reads, and numpy's arrays."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.numpy_files import MAGIC, NoArray, read_npy
from mmgen.runtime.files.regular import open_regular
from mmgen.runtime.storage.schema import Media

LIGHT = 128  # of 256 levels
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of grey in 16 bits
ZIP = b"PK"  # the first bytes of files of several arrays


def read_media(path: Path, media: Media) -> NDArray[Any]:
    """Read media that a request can start from: a picture as uint8 (H, W, 3), or an array in a .npy file.

    Of an animation the first frame is read; the camera's orientation is applied, and transparent parts are laid over
    white.

    Raises:
        MmgenError: a file that can't be read as one; the size is checked with the request.
    """
    wanted = f"a .npy file of {media.dtype} {media.shape}"
    if media.kind == "image":
        wanted = f"a picture of {media.shape[1]} x {media.shape[0]}, or {wanted}"
    if path.suffix == ".npy":
        return read_array(path, wanted)
    if media.kind != "image":
        raise MmgenError(f"{path}: the bundle makes media of kind {media.kind}", wanted=wanted)
    pixels = _pixels(path, "RGBA", wanted)
    alpha = pixels[..., 3:] / 255
    on_white: NDArray[np.uint8] = (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return on_white


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask: the bools in a .npy file, or bool (H, W) of a picture.

    A pixel is true if it is neither darker than half, in Pillow's weights of the colours, nor more than half
    transparent.

    Raises:
        MmgenError: a file that can't be read as one.
    """
    wanted = "a picture, or bools in a .npy file"
    if path.suffix == ".npy":
        return read_array(path, wanted)
    light, opaque = np.moveaxis(_pixels(path, "LA", wanted) >= LIGHT, -1, 0)
    return np.asarray(light & opaque)


def read_array(path: Path, wanted: str = "a .npy file of numbers") -> NDArray[Any]:
    """Read the array in a .npy file.

    Raises:
        MmgenError: the file can't be read, is damaged or cut, or holds anything but one array of numbers or bools.
    """
    with open_regular(path, wanted=wanted) as (file, size):
        start = file.read(len(MAGIC))
        if start != MAGIC:
            kind = "empty" if not start else "an archive of arrays" if start.startswith(ZIP) else "no .npy file"
            raise MmgenError(f"{path} is {kind}", wanted=wanted)
        file.seek(0)
        try:
            return read_npy(file, size)
        except NoArray as error:
            raise MmgenError(f"{path} is damaged, cut or no array of numbers ({error})", wanted=wanted) from error
        except MemoryError as error:
            raise MmgenError(f"{path} is larger than the memory, {size / 1e9:.3g} GB", wanted=wanted) from error


def _pixels(path: Path, mode: str, wanted: str) -> NDArray[np.uint8]:
    """Read a picture (H, W, letters of the mode), upright."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        remedy = f"{extra('images')}, or give a .npy file"
        raise MmgenError(f"{path}: pictures are read with the package Pillow", remedy=remedy) from error
    with open_regular(path, wanted=wanted) as (file, _), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as picture:
                if picture.format == "EPS":  # for which Pillow would start Ghostscript
                    raise ValueError("it is a program in PostScript")
                if picture.mode == "F":  # which may mean anything
                    raise ValueError("its pixels are floats, without a white")
                upright = ImageOps.exif_transpose(picture)
                if upright.mode in DEEP:  # Pillow would make 255 of all that is more
                    upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
                return np.asarray(upright.convert("RGBA").convert(mode))
        except Exception as error:  # each of Pillow's readers has its own; its words name an object
            reason = "it is no picture that Pillow knows" if "cannot identify" in str(error) else error
            raise MmgenError(f"{path} can't be read as a picture ({reason})", wanted=wanted) from error
