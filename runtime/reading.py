"""Media to start from, out of files: PNG without an imaging library, and numpy's arrays."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.bundle import Media
from mmgen.runtime.errors import MmgenError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by PNG colour type: grey, RGB, and both with alpha
LARGEST = 1 << 28  # bytes of pixels: a file that claims more is not a picture to start from
LIGHT = 128  # of 256 levels
AVERAGE = 3  # a filter of PNG


def read_media(path: Path, media: Media) -> NDArray[Any]:
    """What a request can start from: a PNG picture (H, W, 3), or an array in a .npy file.

    Raises:
        MmgenError: a file that can't be read as one; whether it has the right size is for the request to judge.
    """
    if path.suffix == ".npy":
        return read_array(path, _wanted(media))
    with _reading(path, _wanted(media)):
        if media.kind != "image":
            raise ValueError(f"the bundle makes media of kind {media.kind}")
        return read_png(path.read_bytes())


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask: bool (H, W) of a PNG picture, true where it is lighter than half; or the bool array in a .npy file.

    Raises:
        MmgenError: a file that can't be read as one.
    """
    if path.suffix == ".npy":
        return read_array(path)
    with _reading(path, "a PNG picture or a .npy file"):
        light: NDArray[np.bool_] = read_png(path.read_bytes()).mean(-1) >= LIGHT
        return light


def read_array(path: Path, wanted: str = "a .npy file") -> NDArray[Any]:
    """The array in a .npy file.

    Raises:
        MmgenError: there is none.
    """
    with _reading(path, wanted):
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array


@contextmanager
def _reading(path: Path, wanted: str) -> Iterator[None]:
    """Whatever is wrong with a file, as one line."""
    try:
        yield
    except OSError as error:
        raise MmgenError(f"{path} can't be read ({error.strerror or error})", wanted=wanted) from error
    except (ValueError, EOFError, struct.error, zlib.error) as error:
        raise MmgenError(f"{path} can't be read ({error})", wanted=wanted) from error


def read_png(content: bytes) -> NDArray[np.uint8]:
    """RGB uint8 (H, W, 3) of a PNG file (ISO/IEC 15948) of 8 bits a channel; alpha is laid over white.

    Raises:
        ValueError, struct.error, zlib.error: damaged, or of a kind that isn't read: palettes, 16 bits, interlaced.
    """
    chunks = _chunks(content)
    header = b"".join(chunks.get(b"IHDR", []))
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    if depth != 8 or colour not in CHANNELS or interlaced:
        raise ValueError("of PNG, only grey and RGB of 8 bits are read, with or without alpha, not interlaced")
    channels = CHANNELS[colour]
    size = height * (1 + width * channels)
    if not 0 < size <= LARGEST:
        raise ValueError(f"it is {width} x {height} pixels")
    raw = zlib.decompressobj().decompress(b"".join(chunks.get(b"IDAT", [])), size)
    if len(raw) != size:
        raise ValueError(f"it holds {len(raw)} bytes of pixels and should hold {size}")
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    return _on_white(_unfiltered(rows[:, 0], rows[:, 1:], channels).reshape(height, width, channels))


def _chunks(content: bytes) -> dict[bytes, list[bytes]]:
    """Contents of a PNG's chunks by their kind."""
    if not content.startswith(SIGNATURE):
        raise ValueError("it is no PNG file")
    chunks: dict[bytes, list[bytes]] = {}
    at = len(SIGNATURE)
    while b"IEND" not in chunks:
        size, kind = struct.unpack_from(">I4s", content, at)
        body = content[at + 8 : at + 8 + size]
        (check,) = struct.unpack_from(">I", content, at + 8 + size)
        if zlib.crc32(kind + body) != check:
            raise ValueError(f"its chunk {kind.decode('latin-1')} is damaged")
        chunks.setdefault(kind, []).append(body)
        at += size + 12
    return chunks


def _unfiltered(filters: NDArray[np.uint8], rows: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Undo the filters of PNG (section 9): a row was stored as differences from what is left of it and above."""
    out = np.empty_like(rows)
    above = np.zeros(rows.shape[1], np.uint8)
    for y, (kind, row) in enumerate(zip(filters.tolist(), rows, strict=True)):
        match kind:
            case 0:
                out[y] = row
            case 1:  # from the left: a running sum, modulo 256
                out[y] = row.reshape(-1, channels).cumsum(0, dtype=np.uint8).reshape(-1)
            case 2:
                out[y] = row + above
            case 3 | 4:
                out[y] = _one_by_one(kind, row.tolist(), above.tolist(), channels)
            case _:
                raise ValueError(f"it has a row with filter {kind}, which is unknown")
        above = out[y]
    return out


def _one_by_one(kind: int, row: list[int], above: list[int], channels: int) -> list[int]:
    """The filters in which a value needs the one before: the average of left and above, and Paeth's choice."""
    for i, value in enumerate(row):
        up = above[i]
        left, corner = (row[i - channels], above[i - channels]) if i >= channels else (0, 0)
        row[i] = (value + ((left + up) // 2 if kind == AVERAGE else _paeth(left, up, corner))) & 255
    return row


def _paeth(left: int, up: int, corner: int) -> int:
    """Whichever is nearest to left + up - corner; of two as near, the first."""
    from_left, from_up, from_corner = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    if from_left <= from_up and from_left <= from_corner:
        return left
    return up if from_up <= from_corner else corner


def _on_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Any number of channels (H, W, 1 to 4) to RGB."""
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:] / 255
        pixels = (pixels[..., :-1] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)
    return np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels


def _wanted(media: Media) -> str:
    array = f"a .npy file of {media.dtype} {media.shape}"
    return f"a PNG picture of {media.shape[1]} x {media.shape[0]}, or {array}" if media.kind == "image" else array
