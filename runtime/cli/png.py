"""PNG files and sheets of pictures.

The format is forty lines with the standard library's zlib; so a robot that writes pictures needs no imaging library.
"""

import struct
import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

UP = 2  # the PNG filter that stores each row as the difference from the row above
GREY, RGB = 0, 2  # PNG colour types


def png(picture: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> bytes:
    """Encode a picture as a PNG file (ISO/IEC 15948).

    Args:
        picture: uint8 (H, W, 3), or grey (H, W).
        text: keyword to UTF-8 text, kept in the file as iTXt chunks.
    """
    height, width = picture.shape[:2]
    rows = picture.reshape(height, -1)
    filtered = np.empty((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = UP
    filtered[:, 1:] = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))  # uint8 wraps, as the filter asks
    header = struct.pack(">IIBBBBB", width, height, 8, RGB if picture.ndim == 3 else GREY, 0, 0, 0)
    texts = [_chunk(b"iTXt", f"{key}\0\0\0\0\0{value}".encode()) for key, value in (text or {}).items()]
    data = _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
    return b"".join((b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header), *texts, data, _chunk(b"IEND", b"")))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def sheet(pictures: NDArray[np.uint8], columns: int | None = None, gap: int = 4) -> NDArray[np.uint8]:
    """Pictures (B, H, W, 3) on one white picture, row by row, ``gap`` pixels apart.

    ``columns`` None takes the number that leaves the fewest places empty, from a square up to twice as wide.
    """
    count, height, width, channels = pictures.shape
    if count == 1:
        page: NDArray[np.uint8] = pictures[0]
        return page
    if columns is None:
        square = int(np.ceil(np.sqrt(count)))
        columns = min(range(square, 2 * square), key=lambda c: -count % c)
    rows = -(-count // columns)
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        page[top : top + height, left : left + width] = picture
    return page
