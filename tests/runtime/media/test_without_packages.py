"""What can be read and written where neither Pillow nor PyAV is installed, and what is said of the rest."""

import io
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from commands import mmgen

from mmgen.runtime import MmgenError
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.media.pictures import read_mask
from mmgen.runtime.media.read import read_media
from mmgen.runtime.media.write import media_file, suffixes, writable
from mmgen.runtime.storage.schema import Media

IMAGE = Media("image", (4, 4, 3), "uint8")
VIDEO = Media("video", (2, 4, 4, 3), "uint8", rate=8.0)
AUDIO = Media("audio", (8, 1), "float32", rate=16_000.0)
SERIES = Media("series", (3, 2), "float32")
TEXT = Media("text", (7,), "int64")


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.parametrize(
    ("media", "suffix"),
    [(IMAGE, ".npy"), (VIDEO, ".npy"), (AUDIO, ".npy"), (AUDIO, ".wav"), (SERIES, ".npy"), (SERIES, ".csv")],
)
def test_these_need_nothing(media: Media, suffix: str) -> None:
    samples = np.ones((1, *media.shape), media.dtype)
    assert writable(f"a{suffix}", media) == suffix
    made = read_media(media_file(samples, suffix, media), media)
    assert np.abs(made - samples[0].astype(float)).max() <= 1 / 32768


def test_text_needs_nothing() -> None:
    assert writable("a.txt", TEXT) == ".txt"
    assert media_file(["a cat\n", "größer"], ".txt", TEXT) == "a cat\ngrößer\n".encode()
    assert media_file(["a cat"], ".txt", TEXT) == b"a cat\n"


@pytest.mark.parametrize(
    ("media", "suffix", "library", "name"),
    [(IMAGE, ".png", "Pillow", "images"), (IMAGE, ".jpg", "Pillow", "images"), (IMAGE, ".webp", "Pillow", "images"),
     (VIDEO, ".gif", "Pillow", "images"), (VIDEO, ".webp", "Pillow", "images"), (VIDEO, ".mp4", "PyAV", "media"),
     (AUDIO, ".flac", "PyAV", "media")],
)  # fmt: skip
def test_the_others_name_the_package_and_the_extra(media: Media, suffix: str, library: str, name: str) -> None:
    said = rf"{suffix} files are written with the package {library}, got none; "
    with pytest.raises(MmgenError, match=said) as caught:
        writable(f"a{suffix}", media)
    assert extra(name) in str(caught.value) and suffix in suffixes(media)


@pytest.mark.parametrize(
    ("content", "media", "words", "name"),
    [
        (b"\x89PNG", IMAGE, "pictures are read with the package Pillow", "images"),
        (b"GIF89a", VIDEO, "animations are read with the package Pillow", "images"),
        (b"....ftypisom", VIDEO, "such film is read with the package PyAV", "media"),
        (b"fLaC", AUDIO, "such sound is read with the package PyAV", "media"),
    ],
)
def test_so_do_files_that_are_read(content: bytes, media: Media, words: str, name: str) -> None:
    with pytest.raises(MmgenError, match=words) as caught:
        read_media(content, media)
    assert extra(name) in str(caught.value)
    with pytest.raises(MmgenError, match="pictures are read with the package Pillow"):
        read_mask(b"\x89PNG")


def test_sound_of_another_rate_says_what_resamples_it() -> None:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8))
    with pytest.raises(MmgenError, match="sound is resampled with the package PyAV, got none"):
        read_media(content.getvalue(), AUDIO, fit=True)


def test_a_command_says_so_before_it_makes_anything(bundle_copy: Path) -> None:
    result = mmgen("generate", "b.mmgen", "--prompt=red", "-o", "out.png")
    assert result.exit_code == 1 and result.stderr.splitlines()[:-1] == ["loading b.mmgen"]
    assert ".png files are written with the package Pillow, got none; pip install" in result.stderr
    result = mmgen("generate", "b.mmgen", "--prompt=red", "-o", "folder/")
    assert result.exit_code == 1 and ".png files are written with the package Pillow" in result.stderr
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["b.mmgen"]
    assert mmgen("generate", "b.mmgen", "--prompt=red", "-o", "out.npy").exit_code == 0
