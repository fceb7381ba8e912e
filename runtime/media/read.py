"""Media of any kind out of files."""

from typing import Any

from numpy.typing import NDArray

from mmgen.runtime.base.arrays import as_array
from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.files.numpy_files import MAGIC
from mmgen.runtime.media.arrays import array_in
from mmgen.runtime.media.film import read_film
from mmgen.runtime.media.pictures import read_picture
from mmgen.runtime.media.series import columns, read_series
from mmgen.runtime.media.sound import read_sound
from mmgen.runtime.media.source import File, Source, opened
from mmgen.runtime.storage.schema import Media


def read_media(source: Source, media: Media, *, fit: bool = False) -> NDArray[Any]:
    """Read a file as an array of media's shape and dtype.

    What it is is seen from its content.  Every kind of media may be a .npy file, which may also hold several, (B, ...).
    Else an image is a picture that Pillow knows; a video a GIF, a WebP or PNG with several frames, or a file that PyAV
    knows, such as MP4 and WebM; audio a WAV file, or one that PyAV knows, such as FLAC, MP3 and Ogg; a series a CSV
    file.

    Args:
        source: the file's name, or its bytes.
        fit: change pictures, film and sound of another size, rate or length to media's; ``read_picture``,
            ``film_of`` and ``read_sound`` say how.  Else they are refused, but for sound that is shorter, which is
            filled up with silence.

    Raises:
        MmgenError: a file that can't be read as media of this kind, that is damaged or cut, or that isn't as media
            says; or the package that reads it isn't installed.
    """
    with opened(source, _wanted(media)) as file:
        if file.name.endswith(".npy") or file.start(len(MAGIC)) == MAGIC:
            return _array(file, media)
        match media.kind:
            case "image":
                return read_picture(file, media.shape[0], media.shape[1], fit)
            case "video":
                return read_film(file, media, fit)
            case "audio":
                return read_sound(file, media, fit)
            case "series":
                return read_series(file, media)
        raise MmgenError(f"{file.name}: media of kind {media.kind}", wanted=file.wanted)


def _array(file: File, media: Media) -> NDArray[Any]:
    """Read an array, and check its shape; its numbers may have another type, if media's type has them."""
    wanted = f"{media.dtype} {media.shape}, or several"
    array = as_array(file.name, array_in(file), media.dtype, wanted)
    if array.shape == (1, *media.shape):
        array = array[0]
    elif array.shape[array.ndim - len(media.shape) :] != media.shape or array.ndim > len(media.shape) + 1:
        remedy = "resize it first" if media.kind in ("image", "video") else None
        raise MmgenError(file.name, got=said(array), wanted=wanted, remedy=remedy)
    return array


def _wanted(media: Media) -> str:
    """Say what can be read as media."""
    array = f"a .npy file of {media.dtype} {media.shape}"
    rate = "" if media.rate is None else f" at {media.rate:g} a second"
    match media.kind:
        case "image":
            return f"a picture of {media.shape[1]} x {media.shape[0]}, or {array}"
        case "video":
            frames, height, width, _ = media.shape
            return f"a film of {frames} frames of {width} x {height}{rate}, or {array}"
        case "audio":
            samples, channels = media.shape
            many = "1 channel" if channels == 1 else f"{channels} channels"
            return f"sound of at most {samples} samples{rate} in {many}, or {array}"
        case "series":
            return f"a .csv file of {media.shape[0]} lines with the columns {', '.join(columns(media))}, or {array}"
    return array
