"""Animations that Pillow knows: GIF, and WebP and PNG with several frames."""

import io
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.media.frames import Frame, Frames
from mmgen.runtime.media.importing import pillow
from mmgen.runtime.media.pictures import check_size, on_white, open_picture
from mmgen.runtime.media.source import File

STARTS = (b"GIF8", b"RIFF....WEBP", b"\x89PNG")  # of their files; a dot is any byte
TICKS = {"GIF": 0.01, "WEBP": 0.001, "PNG": 0.001}  # seconds: the unit of a frame's length
UNSAID = 0.1  # seconds that players show a frame whose length isn't said
SHORTEST = 2  # hundredths of a second: players show a GIF's shorter frames for ten


def is_animation(start: bytes) -> bool:
    """Whether a file that starts so, with 12 bytes, is one of these; a picture is one of a single frame."""
    return any(
        len(start) >= len(known) and all(k in (ord("."), s) for k, s in zip(known, start, strict=False))
        for known in STARTS
    )


def animation_frames(file: File, size: tuple[int, int] | None) -> Frames:
    """Yield an animation's frames, each as it is shown: put together with those below it, over white.

    Args:
        size: width and height that it must have; None: any.

    Raises:
        MmgenError: a file that can't be read as one, or of another size.
    """
    with open_picture(file, "animation", list(TICKS)) as animation:
        if size is not None:
            check_size(file, animation.size, size)  # before anything is unpacked
        start, unsaid = 0.0, UNSAID if getattr(animation, "is_animated", False) else 0.0
        for picture in pillow().ImageSequence.Iterator(animation):
            if size is not None:
                check_size(file, picture.size, size)  # a frame may reach beyond the screen
            picture.load()  # a WebP's frame has its length only then
            end = start + (picture.info.get("duration", 0) / 1000 or unsaid)
            yield Frame(start, end, TICKS[animation.format], partial(on_white, picture, picture.size))
            start = end


def animation_file(film: NDArray[np.uint8], suffix: str, rate: float) -> bytes:
    """Return uint8 (T, H, W, 3) as a .gif or .webp file that is shown over and over.

    Frames begin at the hundredth of a second, in WebP the thousandth, that is nearest; those of a GIF last at least two
    hundredths.  A GIF's frames have at most 256 colours each; WebP loses nothing.

    Args:
        rate: frames a second.
    """
    pil = pillow(f"{suffix} files are written", "write a .npy file")
    ticks = 100 if suffix == ".gif" else 1000  # a second
    begins = [round(ticks * frame / rate) for frame in range(len(film) + 1)]
    least = SHORTEST if suffix == ".gif" else 1
    lengths = [max(least, end - begin) * (1000 // ticks) for begin, end in pairwise(begins)]
    first, *others = (pil.Image.fromarray(frame) for frame in film)
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    content = io.BytesIO()
    first.save(
        content, suffix[1:], save_all=True, append_images=others, duration=lengths if others else lengths[0], loop=0,
        **options,
    )  # fmt: skip
    return content.getvalue()
