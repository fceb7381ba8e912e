"""Containers of film and sound, opened by PyAV so that a file opens no other and lays out no more than it may."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmgen.runtime.media.importing import pyav
from mmgen.runtime.media.source import File

# Names of FFmpeg's readers.  Those that aren't here include lists of other files and addresses, such as hls and concat.
KNOWN = "mov,mp4,matroska,webm,avi,ogg,flac,mp3,aac,wav,w64,aiff,au,caf,flv,mpegts,mpeg,asf,gif,apng"
LENIENT = 19  # the release of PyAV from which titles that aren't UTF-8 are no errors
MOST_PIXELS = 1 << 25  # of a frame: more than 7680 x 4320
MISSING = 0.05  # seconds at the end of a file that may be missing: those who write them round
UNCLEAR = 1.0  # the same, where packets don't say how long they last
# Formats, by the names of FFmpeg's readers, whose files say how long they are.
LASTING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flac", "wav", "w64", "aiff", "au", "caf")
TAGS = 1 << 16  # bytes before an MP3's sound
MP3_LENGTH = (b"Xing", b"Info", b"VBRI")  # that begin the part of an MP3 that says how long it is, where there is one


@contextmanager
def container(file: File, what: str) -> Iterator[Any]:
    """Open a file of film or sound by PyAV.

    Args:
        what: is looked for, "film" or "sound".

    Raises:
        MmgenError: PyAV isn't installed, or finds something wrong, now or in the block.
    """
    av = pyav(f"{file.name}: such {what} is read")
    options = {"format_whitelist": KNOWN, "protocol_whitelist": "none", "max_pixels": str(MOST_PIXELS)}
    lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < LENIENT else {}
    file.content.seek(0)
    with (
        file.reading(f"it is no {what} that PyAV knows"),
        av.open(file.content, options=options, io_open=_refuse, **lenient) as opened,
    ):
        yield opened


def decoded(file: File, opened: Any, stream: Any) -> Iterator[Any]:
    """Yield a stream's frames.

    Raises:
        MmgenError: the file is cut or damaged.
    """
    stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
    end, may_miss, lasts = 0.0, MISSING, _said_length(file, opened)
    for packet in opened.demux():
        if packet.is_corrupt:
            raise file.refused("it is cut or damaged")
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            may_miss = may_miss if packet.duration else UNCLEAR
        if packet.stream is stream:
            yield from packet.decode()
    if end < lasts - may_miss:
        raise file.refused(f"it is cut: it says that it lasts {lasts:.4g} s, and ends after {end:.4g} s")


def _said_length(file: File, opened: Any) -> float:
    """Return how many seconds a file says that it lasts; 0 where FFmpeg can only have guessed, as of a stream."""
    says = opened.format.name in LASTING
    if opened.format.name == "mp3":
        at = file.content.tell()
        file.content.seek(0)
        start = file.content.read(TAGS)
        file.content.seek(at)
        says = any(mark in start for mark in MP3_LENGTH)
    return opened.duration / 1e6 if says and opened.duration else 0.0


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    """Open nothing: what is in a file leads to no other."""
    raise PermissionError(f"it names another file, {url!r}")
