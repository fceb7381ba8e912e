"""Files of pictures, film and sound, made by Pillow and PyAV themselves."""

import io
from fractions import Fraction
from typing import Any

import numpy as np
import pytest


def png(picture: np.ndarray) -> bytes:
    """A picture as a PNG file."""
    image = pytest.importorskip("PIL.Image", reason="pictures are written by Pillow")
    content = io.BytesIO()
    image.fromarray(picture).save(content, "png")
    return content.getvalue()


def film(
    frames: np.ndarray,
    *,
    container: str = "mp4",
    codec: str = "libx264",
    rate: float = 8.0,
    pixels: str = "yuv444p",
    begins: list[int] | None = None,
    **options: str,
) -> bytes:
    """Frames (T, H, W, 3) as a file; ``begins``: of each frame, in units of 1/rate."""
    av = pytest.importorskip("av", reason="film is written by PyAV")
    content = io.BytesIO()
    with av.open(content, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=Fraction(rate).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        stream.options = {"crf": "8", "qscale": "2"}
        for index, frame in enumerate(frames):
            made = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if begins is not None:
                made.pts, made.time_base = begins[index], 1 / Fraction(rate).limit_denominator(1001)
            file.mux(stream.encode(made))
        file.mux(stream.encode())
    return content.getvalue()


def sound(samples: np.ndarray, *, container: str, codec: str, rate: int, layout: str = "mono") -> bytes:
    """Samples (N, C), float32, as a file."""
    av = pytest.importorskip("av", reason="sound is written by PyAV")
    content = io.BytesIO()
    with av.open(content, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        given = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples).reshape(1, -1), format="flt", layout=layout)
        given.sample_rate, given.pts = rate, 0
        size: dict[str, Any] = {"frame_size": stream.frame_size} if stream.frame_size else {}
        fit = av.AudioResampler(format=stream.format, layout=layout, rate=rate, **size)
        for frame in [*fit.resample(given), *fit.resample(None)]:
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return content.getvalue()
