"""Media of any kind into files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import followed, whole_file
from mmgen.runtime.media.animations import animation_file
from mmgen.runtime.media.arrays import npy
from mmgen.runtime.media.film import film_file
from mmgen.runtime.media.importing import pillow, pyav
from mmgen.runtime.media.pictures import picture_file
from mmgen.runtime.media.series import series_file
from mmgen.runtime.media.sheet import sheet
from mmgen.runtime.media.sound import flac_file, wave_file
from mmgen.runtime.storage.schema import Media

Batch: TypeAlias = "NDArray[Any] | Sequence[str]"  # (B, *media shape), or of media of kind text B texts

SUFFIXES = {  # by kind of media; the first is taken where nobody chose
    "image": (".png", ".jpg", ".webp", ".npy"),
    "video": (".gif", ".webp", ".mp4", ".npy"),
    "audio": (".wav", ".flac", ".npy"),
    "series": (".csv", ".npy"),
    "text": (".txt", ".npy"),
    "codes": (".npy",),
    "array": (".npy",),
}
ALSO = {".jpeg": ".jpg"}
ALONE = (".wav", ".flac", ".csv")  # files of one sample


def suffixes(media: Media) -> tuple[str, ...]:
    """Return the kinds of files that media can be written as; film and sound without a rate are arrays.

    So is sound whose rate isn't a whole number.
    """
    timeless = media.rate is None or (media.kind == "audio" and media.rate % 1)
    if media.kind in ("video", "audio") and timeless:
        return (".npy",)
    return SUFFIXES[media.kind]


def writable(path: str | os.PathLike[str], media: Media, count: int = 1) -> str:
    """Check that samples can be written as a file, with the packages that are installed, and return its suffix.

    Raises:
        MmgenError: another suffix than those of media's kind, a package is missing, or such a file holds one sample.
    """
    suffix = Path(path).suffix.lower()
    suffix = ALSO.get(suffix, suffix)
    if suffix not in suffixes(media):
        names = " or ".join(f"NAME{known}" for known in suffixes(media))
        raise MmgenError(f"output {path}", wanted=f"{names} or FOLDER/ for media of kind {media.kind}")
    if count > 1 and suffix in ALONE:
        raise MmgenError(f"output {path} holds one sample", got=count, remedy="write them into a folder, or as .npy")
    match suffix:
        case ".png" | ".jpg" | ".gif" | ".webp":
            pillow(f"{suffix} files are written", "write a .npy file")
        case ".mp4" | ".flac":
            pyav(f"{suffix} files are written", "write a .npy file")
    return suffix


def write_media(
    path: str | os.PathLike[str], samples: Batch, media: Media, *, note: Mapping[str, Any] | None = None
) -> None:
    """Write samples to a file, whose suffix says what it is to be; it is written whole or not at all.

    Args:
        samples, note: as for ``media_file``.

    Raises:
        MmgenError: as ``writable`` and ``media_file``, or a place that can't be written.
    """
    suffix = writable(path, media, len(samples))
    with whole_file(followed(Path(path))) as write:
        write(media_file(samples, suffix, media, note=note))


def media_file(
    samples: Batch,
    suffix: str,
    media: Media,
    *,
    note: Mapping[str, Any] | None = None,
    columns: int | None = None,
) -> bytes:
    """Return samples as the bytes of a file.

    Several pictures lie on a sheet, films play side by side, texts follow each other; a .npy file has the array
    (B, ...).

    Args:
        samples: (B, *shape) of media's dtype; of media of kind text B texts, or tokens for a .npy file.
        suffix: one of ``suffixes(media)``, as ``writable`` returns it.
        note: how they were made, kept in PNG files as JSON.
        columns: of a sheet; None: as ``sheet`` likes.

    Raises:
        MmgenError: NaN or infinity, or samples that such a file can't hold, as WebP no side of more than 16,383 pixels.
    """
    if isinstance(samples, np.ndarray) and samples.dtype.kind == "f" and not np.isfinite(samples).all():
        raise MmgenError(f"media of kind {media.kind}", got="NaN or infinity", wanted="finite numbers")
    try:
        return _encoded(samples, suffix, media, note, columns)
    except MmgenError:
        raise
    except Exception as error:  # each of the libraries has its own
        remedy = "write a .npy file, or fewer samples"
        raise MmgenError(f"media can't be written as a {suffix} file ({error})", remedy=remedy) from error


def _encoded(
    samples: Any, suffix: str, media: Media, note: Mapping[str, Any] | None, columns: int | None
) -> bytes:
    rate = media.rate or 0.0
    match media.kind, suffix:
        case _, ".npy":
            return npy(samples)
        case "image", _:
            return picture_file(sheet(samples, columns), suffix, note)
        case "video", ".mp4":
            return film_file(sheet(samples, columns), rate)
        case "video", _:
            return animation_file(sheet(samples, columns), suffix, rate)
        case "audio", ".wav":
            return wave_file(samples[0], rate)
        case "audio", _:
            return flac_file(samples[0], rate)
        case "series", _:
            return series_file(samples[0], media)
        case "text", _ if not isinstance(samples, np.ndarray):
            return "".join(f"{text.rstrip()}\n" for text in samples).encode()
    raise ValueError(f"there is none for {media.kind} of {type(samples).__name__}")
