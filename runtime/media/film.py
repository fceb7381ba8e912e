"""Film: animations by Pillow, all else, such as MP4 and WebM, by PyAV."""

import io
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.media.animations import animation_frames, is_animation
from mmgen.runtime.media.containers import container, decoded
from mmgen.runtime.media.frames import Frame, Frames, film_of
from mmgen.runtime.media.importing import pyav
from mmgen.runtime.media.pictures import check_size
from mmgen.runtime.media.source import File
from mmgen.runtime.storage.schema import Media

# By preference, for distributions may build FFmpeg without the first, with what leaves hardly any loss to be seen.
ENCODERS = {"libx264": {"crf": "12"}, "mpeg4": {"qmin": "2", "qmax": "3"}}


def read_film(file: File, media: Media, fit: bool) -> NDArray[np.uint8]:
    """Read a film as uint8 (T, H, W, 3), upright, over white; ``film_of`` says what becomes of others with ``fit``.

    Raises:
        MmgenError: a file that can't be read as one, or a film of another size, rate or number of frames.
    """
    reader = animation_frames if is_animation(file.start(12)) else _frames
    size = None if fit else (media.shape[2], media.shape[1])
    return film_of(file, lambda: reader(file, size), media, fit)


def _frames(file: File, wanted: tuple[int, int] | None) -> Frames:
    """Yield the frames of the first film in a container; ``wanted``: width and height that they must have."""
    with container(file, "film") as opened:
        stream = opened.streams.video[0] if opened.streams.video else None
        if stream is None:
            raise file.refused("there is no film in it")
        if wanted is not None:
            check_size(file, (stream.width, stream.height), wanted, turned=True)  # before anything is unpacked
        tick, usual = float(stream.time_base), 1 / float(stream.average_rate or 1)
        first, end = None, 0.0
        for frame in decoded(file, opened, stream):
            begin = end if frame.pts is None else float(frame.pts * stream.time_base)
            first = begin if first is None else first
            length = float(frame.duration * stream.time_base) if frame.duration else usual
            end = begin + length
            turns = frame.rotation // 90 % 4
            if wanted is not None:
                size = (frame.width, frame.height)
                check_size(file, size[::-1] if turns % 2 else size, wanted)
            yield Frame(begin - first, end - first, tick, partial(_pixels, frame, turns))


def _pixels(frame: Any, turns: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, turns)


def film_file(film: NDArray[np.uint8], rate: float) -> bytes:
    """Return uint8 (T, H, W, 3) as an MP4 file: H.264, or where PyAV was built without it MPEG-4.

    Its colours are averaged over 2 x 2 pixels, as players want it, unless height or width is odd.

    Args:
        rate: frames a second.
    """
    from fractions import Fraction

    av = pyav(".mp4 files are written", "write a .gif or .npy file")
    _, height, width, _ = film.shape
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as written:
        name = next(name for name in ENCODERS if name in av.codecs_available)  # the second is FFmpeg's own
        stream = written.add_stream(name, rate=Fraction(rate).limit_denominator(10_000), options=ENCODERS[name])
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        for pixels in film:
            written.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        written.mux(stream.encode())
    return content.getvalue()
