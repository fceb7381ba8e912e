"""Sound: WAV files against Python's own library and SciPy, all else against PyAV; rates, channels and lengths."""

import io
import struct
import warnings
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import sound
from tolerances import LIMITS

from mmgen.runtime import MmgenError
from mmgen.runtime.media.read import read_media
from mmgen.runtime.media.write import media_file, suffixes, write_media
from mmgen.runtime.storage.schema import Media
from mmgen.runtime.verify import relative_rms

RATE = 16_000
MONO = Media("audio", (4000, 1), "float32", rate=16_000.0)
STEREO = Media("audio", (4000, 2), "float32", rate=16_000.0)
HALF_A_SECOND = Media("audio", (8000, 1), "float32", rate=16_000.0)
NOISE = np.random.default_rng(0).uniform(-1, 1, (4000, 2)).astype(np.float32)


def sine(seconds: float, rate: int, frequency: float = 440.0, channels: int = 1) -> np.ndarray:
    phase = 2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(phase)[:, None], channels, 1).astype(np.float32)


def wav(content: bytes, width: int, channels: int = 1, rate: int = RATE) -> bytes:
    """A file as the standard library writes it."""
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(content)
    return file.getvalue()


def sixteen(samples: np.ndarray, rate: int = RATE) -> bytes:
    return wav((samples * 32767).round().astype("<i2").tobytes(), 2, samples.shape[1], rate)


# WAV


@pytest.mark.parametrize(("width", "content", "wanted"), [
    (1, bytes([0, 128, 255]), [-1, 0, 127 / 128]),
    (2, np.array([-32768, 0, 32767], "<i2").tobytes(), [-1, 0, 32767 / 32768]),
    (3, b"\x00\x00\x80" + bytes(3) + b"\xff\xff\x7f", [-1, 0, 1 - 2**-23]),
    (4, np.array([-(2**31), 0, 2**31 - 1], "<i4").tobytes(), [-1, 0, 1]),
])  # fmt: skip
def test_whole_numbers_of_every_width_are_read(width: int, content: bytes, wanted: list[float]) -> None:
    made = read_media(wav(content, width), MONO)
    assert made.dtype == np.float32 and made.shape == (4000, 1)
    assert np.array_equal(made[:3, 0], np.float32(wanted)) and not made[3:].any(), "filled up with silence"


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_files_of_scipy_are_read(dtype: str) -> None:
    wavfile = pytest.importorskip("scipy.io.wavfile", reason="SciPy writes the files")
    if dtype.startswith("f"):
        pytest.importorskip("av", reason="WAV files of floats are read with PyAV")
        given = NOISE.astype(dtype)
    else:
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        given = np.random.default_rng(1).integers(low, high, (4000, 2), dtype, endpoint=True)
    file = io.BytesIO()
    wavfile.write(file, RATE, given)
    half = {"u1": 2**7, "i2": 2**15, "i4": 2**31}.get(dtype, 1)
    wanted = (given.astype(np.float64) - (128 if dtype == "u1" else 0)) / half
    assert np.array_equal(read_media(file.getvalue(), STEREO), wanted.astype(np.float32))


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    loud = NOISE * 1.5
    write_media(tmp_path / "a.wav", loud[None], STEREO)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (2, 2, RATE, 4000)
        read = np.frombuffer(file.readframes(4000), "<i2").reshape(-1, 2)
    assert np.abs(read / 32768 - loud.clip(-1, 1)).max() <= 1 / 32768, "clipped, not wrapped around"


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sixteen_bits_come_back_to_the_bit(suffix: str) -> None:
    if suffix == ".flac":
        pytest.importorskip("av", reason="FLAC is written by PyAV")
    levels = np.random.default_rng(2).integers(-32768, 32768, (1, 4000, 2))
    samples = (levels / 32768).astype(np.float32)
    content = media_file(samples, suffix, STEREO)
    assert content.startswith({".wav": b"RIFF", ".flac": b"fLaC"}[suffix])
    assert np.array_equal(read_media(content, STEREO), samples[0])


def test_a_file_that_a_program_could_not_go_back_in_is_read_to_its_end() -> None:
    content = bytearray(sixteen(NOISE))
    content[40:44] = (0x7FFFF000).to_bytes(4, "little")  # as espeak-ng --stdout writes
    assert np.array_equal(read_media(bytes(content), STEREO), read_media(sixteen(NOISE), STEREO))


@pytest.mark.parametrize(("number", "dtype"), [(1, "<i2"), (1, "<i4"), (3, "<f4")])
def test_the_longer_header_of_many_programs_is_read(number: int, dtype: str) -> None:
    """WAVE_FORMAT_EXTENSIBLE, which sox writes for 24 bits; Python's library knows it from 3.12 on."""
    pytest.importorskip("av", reason="Python's library may not know it")
    width = np.dtype(dtype).itemsize
    given = (NOISE if number == 3 else NOISE * 2.0 ** (8 * width - 1)).astype(dtype)
    shape = struct.pack("<HHIIHH", 0xFFFE, 2, RATE, RATE * 2 * width, 2 * width, 8 * width)
    guid = struct.pack("<HHIH", 22, 8 * width, 3, number) + bytes.fromhex("000000001000800000aa00389b71")
    chunks = [(b"fmt ", shape + guid), (b"data", given.tobytes())]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(content)) + content for name, content in chunks)
    made = read_media(b"RIFF" + struct.pack("<I", len(body)) + body, STEREO)
    assert np.abs(made - NOISE).max() <= 2.0 ** (1 - 8 * min(width, 3))


# other kinds of files


@pytest.mark.parametrize(("container", "codec", "figure"), [
    ("flac", "flac", "FLAC"), ("wav", "pcm_f32le", "WAV of floats"), ("wav", "pcm_s24le", "WAV of 24 bits"),
    ("aiff", "pcm_s16be", "FLAC"), ("mp3", "libmp3lame", "MP3"), ("matroska", "pcm_s16le", "FLAC"),
])  # fmt: skip
def test_what_pyav_wrote_is_read(container: str, codec: str, figure: str) -> None:
    given = sine(0.2, RATE, channels=2)
    made = read_media(sound(given, container=container, codec=codec, rate=RATE, layout="stereo"), STEREO)
    assert relative_rms(made[: len(given)], given) < LIMITS[f"sound, {figure}"]
    assert np.abs(made[len(given) :]).max() < LIMITS["sound, MP3"], "filled up with silence"


def test_a_title_need_not_be_utf_8() -> None:
    content = sound(NOISE[:, :1], container="wav", codec="pcm_f32le", rate=RATE)
    title = b"LIST" + struct.pack("<I", 18) + b"INFOINAM" + struct.pack("<I", 6) + "größe".encode("latin-1") + b"\0"
    titled = b"RIFF" + struct.pack("<I", len(content) - 8 + len(title)) + content[8:] + title
    assert np.array_equal(read_media(titled, MONO), NOISE[:, :1])


def test_the_sound_of_a_film_is_read() -> None:
    av = pytest.importorskip("av", reason="film is written by PyAV")
    content = io.BytesIO()
    with av.open(content, "w", format="matroska") as file:
        picture = file.add_stream("mpeg4", rate=8)
        picture.width = picture.height = 32
        picture.pix_fmt = "yuv420p"
        speech = file.add_stream("pcm_s16le", rate=RATE, layout="mono")
        given = av.AudioFrame.from_ndarray((sine(0.25, RATE).T * 32768).astype(np.int16), format="s16", layout="mono")
        given.sample_rate = RATE
        file.mux(picture.encode(av.VideoFrame(32, 32, "yuv420p")))
        file.mux(speech.encode(given))
        file.mux(picture.encode())
    assert relative_rms(read_media(content.getvalue(), MONO), sine(0.25, RATE)) < LIMITS["sound, FLAC"]


# another rate, number of channels or length


@pytest.mark.parametrize(
    ("content", "media", "words"),
    [
        (sixteen(sine(0.1, 44_100), 44_100), MONO, "got 44100 samples a second, 1 channel, wanted sound of at most"),
        (sixteen(NOISE), MONO, "got 16000 samples a second, 2 channels, wanted .* at 16000 a second in 1 channel"),
        (sixteen(NOISE[:, :1]), STEREO, "got 16000 samples a second, 1 channel, wanted .* in 2 channels"),
        (sixteen(sine(0.3, RATE)), MONO, "got more than 4000 samples, wanted sound of at most 4000 samples"),
    ],
)
def test_what_differs_is_refused_and_both_are_named(content: bytes, media: Media, words: str) -> None:
    with pytest.raises(MmgenError, match=f"{words}.*--resize"):
        read_media(content, media)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("frequency", [440.0, 3000.0])
def test_asked_for_a_sine_of_another_rate_comes_back(rate: int, frequency: float) -> None:
    pytest.importorskip("av", reason="sound is resampled by PyAV")
    made = read_media(sixteen(sine(0.5, rate, frequency), rate), HALF_A_SECOND, fit=True)
    inner = slice(400, -400)  # where the filter sees no end
    assert relative_rms(made[inner], sine(0.5, RATE, frequency)[inner]) < LIMITS["resampled sine"]


def test_what_the_lower_rate_can_not_hold_is_filtered_out() -> None:
    pytest.importorskip("av", reason="sound is resampled by PyAV")
    made = read_media(sixteen(sine(0.5, 44_100, 11_000), 44_100), HALF_A_SECOND, fit=True)
    assert np.abs(made[400:-400]).max() < LIMITS["resampled away"]


@pytest.mark.parametrize("seconds", [0.1, 0.25])
def test_asked_for_another_rate_keeps_the_length(seconds: float) -> None:
    pytest.importorskip("av", reason="sound is resampled by PyAV")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = read_media(sixteen(np.full((round(seconds * 48_000), 1), 0.5), 48_000), MONO, fit=True)
    assert abs(np.count_nonzero(np.abs(made) > 0.25) - seconds * RATE) <= 1


def test_asked_for_channels_are_averaged_or_repeated() -> None:
    both = np.stack([sine(0.25, RATE, 440)[:, 0], sine(0.25, RATE, 880)[:, 0]], 1)
    step = 1 / 32768
    assert np.abs(read_media(sixteen(both), MONO, fit=True) - both.mean(1, keepdims=True)).max() <= step
    assert np.abs(read_media(sixteen(both[:, :1]), STEREO, fit=True) - both[:, :1]).max() <= step
    with pytest.raises(MmgenError, match=r"got 3 channels, .*mix them first"):
        read_media(sixteen(np.zeros((10, 3))), STEREO, fit=True)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_asked_for_what_is_longer_is_cut_with_a_warning(rate: int) -> None:
    if rate != RATE:
        pytest.importorskip("av", reason="sound is resampled by PyAV")
    with pytest.warns(UserWarning, match=r"cut to its first 0\.25 s, 4000 samples"):
        made = read_media(sixteen(sine(3, rate), rate), MONO, fit=True)
    assert relative_rms(made[400:3600], sine(3, RATE)[400:3600]) < LIMITS["resampled sine"]


def test_no_rate_fits_every_rate() -> None:
    media = Media("audio", (4000, 2), "float32")
    assert np.array_equal(read_media(sixteen(NOISE, 8000), media), read_media(sixteen(NOISE), STEREO))
    assert suffixes(media) == (".npy",), "nobody knows how fast it is to be played"
    assert suffixes(Media("audio", (4000, 2), "float32", rate=22_050.5)) == (".npy",)


# what can't be read or written


def test_a_cut_file_is_one_line() -> None:
    whole = sixteen(NOISE)
    for end in range(1, len(whole) - 3, 97):
        for fit in (False, True):
            with pytest.raises(MmgenError, match=r"a file of .* bytes can't be read") as caught:
                read_media(whole[:end], STEREO, fit=fit)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("wav", "pcm_f32le")])
def test_a_cut_file_that_says_how_long_it_is_is_one_line(container: str, codec: str) -> None:
    whole = sound(sine(0.5, RATE), container=container, codec=codec, rate=RATE)
    for end in range(1, round(len(whole) * 0.7), 97):  # the end of an MP3 is padding
        with pytest.raises(MmgenError, match=r"a file of .* bytes can't be read") as caught:
            read_media(whole[:end], Media("audio", (9000, 1), "float32", rate=RATE))
        assert "\n" not in str(caught.value)


def claim(**places: tuple[int, int]) -> bytes:
    """A WAV file with other numbers in its header, at a place and with a number of bytes."""
    content = bytearray(sixteen(NOISE[:, :1]))
    for name, (number, width) in places.items():
        at = {"format": 20, "channels": 22, "rate": 24, "bits": 34, "bytes": 40}[name]
        content[at : at + width] = number.to_bytes(width, "little")
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        claim(bytes=(0x7FFFEFFF, 4)), claim(channels=(0, 2)), claim(channels=(65535, 2)), claim(bits=(0, 2)),
        claim(bits=(64, 2)), claim(rate=(0, 4)), claim(rate=(0xFFFFFFFF, 4)), claim(format=(0x55, 2)), b"RIFF",
        b"RIFF\0\0\0\0WAVE", b"RIFF\xff\xff\xff\xffWAVE" + b"fmt " + bytes(40), b"some text", bytes(1000), b"", b"ID3",
        b"OggS" + bytes(100), b"fLaC" + b"\xff" * 100,
    ],
)  # fmt: skip
@pytest.mark.parametrize("fit", [False, True])
def test_what_is_no_sound_is_one_line(content: bytes, fit: bool) -> None:
    with pytest.raises(MmgenError) as caught:
        read_media(content, MONO, fit=fit)
    assert "\n" not in str(caught.value) and "sound of at most 4000 samples" in str(caught.value)


def test_several_samples_are_several_files(tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=r"a\.wav holds one sample, got 2; write them into a folder"):
        write_media(tmp_path / "a.wav", np.stack([NOISE] * 2), STEREO)
    assert list(tmp_path.iterdir()) == []
    many: Any = Media("audio", (10, 9), "float32", rate=16_000.0)
    pytest.importorskip("av", reason="FLAC is written by PyAV")
    with pytest.raises(MmgenError, match=r"media can't be written as a \.flac file"):
        media_file(np.zeros((1, 10, 9), np.float32), ".flac", many)
