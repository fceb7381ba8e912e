"""Sound: WAV by Python's own library, all else by PyAV."""

import io
import math
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.media.containers import container, decoded
from mmgen.runtime.media.importing import pyav
from mmgen.runtime.media.source import File
from mmgen.runtime.storage.schema import Media

MOST_RATE = 1_000_000  # samples a second of any file
MOST_CHANNELS = 64
PIECE = 1 << 16  # samples read at once
STREAMED = 0x7FFFF000  # bytes from which a size means: until the end; written by programs that can't go back
FULL = 1 << 15  # of 16 bits: 1.0
REACH = 64  # samples beyond the last one that resampling looks at
REMEDY = "convert it first, or ask for that (--resize)"


@dataclass(frozen=True)
class Sound:
    """Sound as a file has it."""

    rate: int  # samples a second
    channels: int
    pieces: Iterator[NDArray[np.float32]]  # (samples, channels) in [-1, 1], one after the other


def read_sound(file: File, media: Media, fit: bool) -> NDArray[np.float32]:
    """Read sound as float32 (samples, channels); what is shorter is filled up with silence.

    With ``fit`` sound of another rate is resampled, channels are averaged into one or one is repeated, and of what is
    longer the beginning is taken, with a warning.

    Raises:
        MmgenError: a file that can't be read as sound, or, without ``fit``, one that is longer or of another rate or
            number of channels.
    """
    start = file.start(12)
    if start.startswith(b"RIFF") and start.endswith(b"WAVE") and (wave := _wave(file)):
        return _fitted(file, wave, media, fit)
    with container(file, "sound") as opened:
        if not opened.streams.audio:
            raise file.refused("there is no sound in it")
        stream = opened.streams.audio[0]
        pieces = _pieces(file, opened, stream)
        return _fitted(file, Sound(stream.rate, stream.channels, pieces), media, fit)


def wave_file(sound: NDArray[np.float32], rate: float) -> bytes:
    """Return float32 (samples, channels) as a .wav file of 16 bits.

    Args:
        rate: whole samples a second.
    """
    import wave

    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(sound.shape[1])
        file.setsampwidth(2)
        file.setframerate(round(rate))
        file.writeframes(sixteen_bits(sound).astype("<i2").tobytes())
    return content.getvalue()


def flac_file(sound: NDArray[np.float32], rate: float) -> bytes:
    """Return float32 (samples, channels) as a .flac file of 16 bits.

    Args:
        rate: whole samples a second.
    """
    av = pyav(".flac files are written", "write a .wav file")
    content = io.BytesIO()
    with av.open(content, "w", format="flac") as written:
        layout = f"{sound.shape[1]}c"
        stream = written.add_stream("flac", rate=round(rate), layout=layout, format="s16")
        frame = av.AudioFrame.from_ndarray(sixteen_bits(sound).reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = round(rate)
        written.mux(stream.encode(frame))
        written.mux(stream.encode())
    return content.getvalue()


def sixteen_bits(sound: NDArray[np.float32]) -> NDArray[np.int16]:
    """Round [-1, 1] to 16 bits; what is beyond is cut off."""
    levels: NDArray[np.int16] = (sound.astype(np.float64) * FULL).round().clip(-FULL, FULL - 1).astype(np.int16)
    return levels


def _wave(file: File) -> Sound | None:
    """Open a WAV file of whole numbers; None: one of another kind."""
    import wave

    with file.reading("it is no WAV file"):
        try:
            opened = wave.open(file.content, "rb")  # noqa: SIM115
        except wave.Error as error:
            if not re.match("unknown (extended )?format", str(error)):
                raise
            file.content.seek(0)
            return None
        width, channels, claimed = opened.getsampwidth(), opened.getnchannels(), opened.getnframes()
        there = (file.size - file.content.tell()) // (width * channels)
        if claimed > there and claimed * width * channels < STREAMED:
            raise ValueError(f"it is cut: it says that it has {claimed} samples, and has {there}")
        if width > 4:
            raise ValueError(f"its samples have {8 * width} bits")
    return Sound(opened.getframerate(), channels, _wave_pieces(file, opened))


def _wave_pieces(file: File, opened: Any) -> Iterator[NDArray[np.float32]]:
    width, channels = opened.getsampwidth(), opened.getnchannels()
    with file.reading("it is no WAV file"):
        while content := opened.readframes(PIECE):
            yield _floats(content, width).reshape(-1, channels)


def _floats(content: bytes, width: int) -> NDArray[np.float32]:
    """Make samples of ``width`` bytes floats; those of one byte have no sign, and 128 is silence."""
    if width == 1:
        return ((np.frombuffer(content, np.uint8) - 128.0) / 128).astype(np.float32)
    words = np.zeros((len(content) // width, 4), np.uint8)
    high = slice(4 - width, None) if sys.byteorder == "little" else slice(0, width)
    words[:, high] = np.frombuffer(content, np.uint8).reshape(-1, width)
    return (words.view(np.int32)[:, 0] / 2.0**31).astype(np.float32)


def _pieces(file: File, opened: Any, stream: Any) -> Iterator[NDArray[np.float32]]:
    """Decode the sound of a container."""
    resampler = None
    for frame in decoded(file, opened, stream):
        if resampler is None:
            resampler = pyav().AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        for made in resampler.resample(frame):
            yield made.to_ndarray().reshape(-1, stream.channels)


def _fitted(file: File, sound: Sound, media: Media, fit: bool) -> NDArray[np.float32]:
    """Give sound media's rate, channels and length."""
    samples, channels = media.shape
    if not (1 <= sound.rate <= MOST_RATE and 1 <= sound.channels <= MOST_CHANNELS):
        raise file.refused(f"it says that it has {sound.rate} samples a second, {_channels(sound.channels)}")
    rate = sound.rate if media.rate is None else media.rate
    if not fit and (sound.rate, sound.channels) != (rate, channels):
        raise file.differs(f"{sound.rate} samples a second, {_channels(sound.channels)}", REMEDY)
    if sound.channels != channels and 1 not in (sound.channels, channels):
        raise file.differs(_channels(sound.channels), "mix them first")
    needed = samples if sound.rate == rate else math.ceil((samples + REACH) * sound.rate / rate) + REACH
    there = _first(sound.pieces, needed + 1, sound.channels)
    longer = len(there) > needed
    if longer and not fit:
        raise file.differs(f"more than {samples} samples", "cut it first, or ask for that (--resize)")
    there = there[:needed]
    mixed = there.mean(1, keepdims=True, dtype=np.float32) if channels < sound.channels else there
    made = mixed if sound.rate == rate else _resampled(file, mixed, sound.rate, rate)
    if longer or len(made) > samples:
        warnings.warn(f"{file.name}: cut to its first {samples / rate:.4g} s, {samples} samples", stacklevel=2)
    filled = np.zeros((samples, channels), np.float32)
    filled[: len(made)] = made[:samples].clip(-1, 1)
    return filled


def _first(pieces: Iterator[NDArray[np.float32]], count: int, channels: int) -> NDArray[np.float32]:
    """Take at most ``count`` samples of the pieces."""
    taken, length = [np.empty((0, channels), np.float32)], 0
    for piece in pieces:
        taken.append(piece[: count - length])
        length += len(taken[-1])
        if length == count:
            break
    return np.concatenate(taken)


def _resampled(file: File, sound: NDArray[np.float32], rate: int, wanted: float) -> NDArray[np.float32]:
    """Resample (samples, channels) with FFmpeg's library; what is above half the lower rate is filtered out."""
    av = pyav(f"{file.name}: sound is resampled", "give it with the bundle's rate")
    layout = f"{sound.shape[1]}c"
    frame = av.AudioFrame.from_ndarray(sound.reshape(1, -1), format="flt", layout=layout)
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout=layout, rate=round(wanted))
    with file.reading("it can't be resampled"):
        made = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray().reshape(-1, sound.shape[1]) for part in made])


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"
