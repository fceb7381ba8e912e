"""PNG files read without an imaging library, against Pillow's writer."""

import io
import struct
import zlib

import numpy as np
import pytest

from mmgen.runtime.pictures import png
from mmgen.runtime.reading import SIGNATURE, read_png

RNG = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(40), np.arange(30))[..., None] * [1, 2, 3] % 256  # which encoders filter in many ways
PIXELS = {"noise": RNG.integers(0, 256, (40, 30, 4), np.uint8)}
PIXELS["smooth"] = np.concatenate([SMOOTH, 255 - SMOOTH[..., :1]], 2).astype(np.uint8)


@pytest.mark.parametrize("kind", PIXELS)
@pytest.mark.parametrize(("mode", "channels"), [("RGB", [0, 1, 2]), ("L", [0])])
def test_what_pillow_writes_is_read(kind: str, mode: str, channels: list[int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle; the runtime does without it")
    pixels = PIXELS[kind][..., channels]
    buffer = io.BytesIO()
    image.fromarray(pixels.squeeze(), mode).save(buffer, "png")
    assert np.array_equal(read_png(buffer.getvalue()), np.broadcast_to(pixels, (40, 30, 3)))


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", [0, 1, 2, 3]), ("LA", [0, 3])])
def test_transparent_pixels_are_laid_over_white(mode: str, channels: list[int]) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle; the runtime does without it")
    picture = image.fromarray(PIXELS["smooth"][..., channels], mode)
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    white = image.new("RGBA", picture.size, "white")
    wanted = np.asarray(image.alpha_composite(white, picture.convert("RGBA")).convert("RGB"))
    assert np.abs(read_png(buffer.getvalue()).astype(int) - wanted).max() <= 1  # rounded in another order


def filtered(pixels: np.ndarray, kind: int) -> bytes:
    """A PNG whose rows all have one filter, as section 9 of the specification defines it."""
    rows = pixels.astype(int)
    left = np.pad(rows, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    up = np.pad(rows, ((1, 0), (0, 0), (0, 0)))[:-1]
    corner = np.pad(rows, ((1, 0), (1, 0), (0, 0)))[:-1, :-1]
    guess = left + up - corner
    distances = np.abs(np.stack([left, up, corner]) - guess)
    paeth = np.choose(distances.argmin(0), [left, up, corner])  # of two as near, the first
    predicted = [0 * rows, left, up, (left + up) // 2, paeth][kind]
    data = np.pad(((rows - predicted) % 256).reshape(len(rows), -1), ((0, 0), (1, 0)), constant_values=kind)
    height, width, _ = pixels.shape
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        *((b"IDAT", piece) for piece in _halves(zlib.compress(data.astype(np.uint8).tobytes()))),
        (b"IEND", b""),
    ]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return SIGNATURE + b"".join(chunks)


def _halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


@pytest.mark.parametrize("content", PIXELS)
@pytest.mark.parametrize("kind", range(5))
def test_every_filter_is_undone(kind: int, content: str) -> None:
    pixels = PIXELS[content][..., :3]
    assert np.array_equal(read_png(filtered(pixels, kind)), pixels)


def test_what_is_written_here_is_read_here() -> None:
    assert np.array_equal(read_png(png(PIXELS["noise"][..., :3], {"mmgen": "text"})), PIXELS["noise"][..., :3])


def test_a_file_cut_or_changed_anywhere_is_an_error_and_never_a_picture() -> None:
    content = png(PIXELS["smooth"][:4, :4, :3])
    for end in range(0, len(content) - 1, 3):
        with pytest.raises((ValueError, struct.error, zlib.error)):
            read_png(content[:end])
    for at in range(len(content)):
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        with pytest.raises((ValueError, struct.error, zlib.error)):
            read_png(changed)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((4, 4, 16, 2, 0, 0, 0), "8 bits"),
        ((4, 4, 8, 3, 0, 0, 0), "grey and RGB"),
        ((4, 4, 8, 2, 0, 0, 1), "not interlaced"),
        ((0, 4, 8, 2, 0, 0, 0), "bytes of pixels"),
        ((60000, 60000, 8, 2, 0, 0, 0), "60000 x 60000"),
    ],
)
def test_what_is_not_read_is_said(header: tuple[int, ...], message: str) -> None:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *header)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    with pytest.raises(ValueError, match=message):
        read_png(SIGNATURE + b"".join(chunks))
