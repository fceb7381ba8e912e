"""Files that strangers may send: one line each, no other file opened, no more memory than media need."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import film, png, sound

from mmgen.runtime import MmgenError
from mmgen.runtime.media.read import read_media
from mmgen.runtime.storage.schema import Media

MEDIA = {
    "image": Media("image", (16, 16, 3), "uint8"),
    "video": Media("video", (4, 16, 16, 3), "uint8", rate=8.0),
    "audio": Media("audio", (1000, 1), "float32", rate=16_000.0),
    "series": Media("series", (3, 2), "float32", labels=("x", "y")),
}
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
NAMES = {"image": "a.png", "video": "a.mp4", "audio": "a.wav", "series": "a.csv"}
kinds = pytest.mark.parametrize("kind", MEDIA)


@pytest.fixture(autouse=True)
def _packages() -> None:
    pytest.importorskip("PIL", reason="pictures are read with Pillow")
    pytest.importorskip("av", reason="film is read with PyAV")


@kinds
@pytest.mark.parametrize("fit", [False, True])
def test_a_place_that_is_no_file_is_one_line(tmp_path: Path, kind: str, fit: bool) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "device").symlink_to("/dev/zero")
    said = {
        "folder": "Is a directory", "pipe": "it is a pipe or a device", "device": "it is a pipe or a device",
        "empty": "is empty", "nothing": "No such file or directory", "a\0b": "null",
    }  # fmt: skip
    for name, words in said.items():
        with pytest.raises(MmgenError, match=words) as caught:
            read_media(tmp_path / name, MEDIA[kind], fit=fit)
        assert "\n" not in str(caught.value)


@kinds
def test_another_kind_of_file_under_this_kind_s_name_is_one_line(tmp_path: Path, kind: str) -> None:
    contents = {
        "image": b"BM" + bytes(100),
        "video": film(FRAMES),
        "audio": sound(np.zeros((900, 1), np.float32), container="flac", codec="flac", rate=16_000),
        "series": b"x,y\n1,2\n3,4\n5,6\n",
        "text": "Ein Satz für sich.\n".encode(),
        "archive": b"PK\3\4" + bytes(200),
        "program": b"\x7fELF" + bytes(200),
        "page": b"<!doctype html><html><img src='file:///etc/passwd'></html>",
    }
    for other, content in contents.items():
        if other == kind:
            continue
        (tmp_path / NAMES[kind]).write_bytes(content)
        with pytest.raises(MmgenError) as caught:
            read_media(tmp_path / NAMES[kind], MEDIA[kind], fit=True)
        assert NAMES[kind] in str(caught.value) and "\n" not in str(caught.value)


LEADING = {  # to another file or to an address, as FFmpeg's readers of lists know them
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{there}\n#EXT-X-ENDLIST\n",
    "hls, address": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {there}\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration='
    '"PT1S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{there}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    "smooth": '<?xml version="1.0"?><SmoothStreamingMedia><StreamIndex Url="{there}"/></SmoothStreamingMedia>',
}


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("leading", LEADING)
def test_a_file_leads_to_no_other(tmp_path: Path, kind: str, leading: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there.ts"
    there.write_bytes(film(FRAMES, container="mpegts", pixels="yuv420p"))
    content = LEADING[leading].format(there=there, port=9).encode()
    (tmp_path / "list").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path / "list", content):
        with pytest.raises(MmgenError, match=r"PyAV knows|names another file") as caught:
            read_media(source, MEDIA[kind], fit=True)
        assert "\n" not in str(caught.value)


def test_ffmpeg_says_nothing_of_its_own(tmp_path: Path) -> None:
    whole = film(FRAMES)
    files = [f"{at}.mp4" for at in range(60, len(whole), 150)]
    for at, name in zip(range(60, len(whole), 150), files, strict=True):
        (tmp_path / name).write_bytes(whole[:at] + b"\xff" * 40 + whole[at + 40 :])
    script = """
import sys
from mmgen.runtime import MmgenError
from mmgen.runtime.media.read import read_media
from mmgen.runtime.storage.schema import Media
for name in sys.argv[1:]:
    for media in (Media("video", (4, 16, 16, 3), "uint8", rate=8.0), Media("audio", (9, 1), "float32", rate=16_000.0)):
        try:
            read_media(name, media)
        except MmgenError as error:
            print(error)
"""
    command = [sys.executable, "-c", script, *files]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stderr == "" and len(ran.stdout.splitlines()) >= len(files)


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "mp4", "mkv", "flac", "wav"])
def test_a_file_changed_anywhere_is_an_error_or_media(kind: str) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in FRAMES]
    content = io.BytesIO()
    match kind:
        case "png":
            whole, media = png(FRAMES[0]), MEDIA["image"]
        case "gif" | "webp":
            pictures[0].save(content, kind, save_all=True, append_images=pictures[1:], duration=125)
            whole, media = content.getvalue(), MEDIA["video"]
        case "mp4" | "mkv":
            whole, media = film(FRAMES, container="mp4" if kind == "mp4" else "matroska"), MEDIA["video"]
        case _:
            codec = {"flac": "flac", "wav": "pcm_f32le"}[kind]
            tone = np.random.default_rng(1).uniform(-1, 1, (900, 1)).astype(np.float32)
            whole, media = sound(tone, container=kind, codec=codec, rate=16_000), MEDIA["audio"]
    for at in range(0, len(whole), max(1, len(whole) // 80)):
        for change in (0x01, 0x80, 0xFF):
            try:
                made = read_media(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :], media)
            except MmgenError as error:
                assert "\n" not in str(error)
            else:
                assert made.shape == media.shape and made.dtype == media.dtype


# claims of what isn't there


def gif_of(width: int, height: int) -> bytes:
    """A GIF that says that its screen is so large, with one frame of a pixel."""
    size = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    frame = b"\x2c" + bytes(4) + size + b"\0\x02\x02\x44\x01\x00"
    return b"GIF89a" + size + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + frame + b"\x3b"


def avi_of(width: int, height: int) -> bytes:
    """A film of JPEG pictures that say that they are so large."""
    content = film(FRAMES, container="avi", codec="mjpeg", pixels="yuvj444p")
    size = (16).to_bytes(2, "big") * 2
    assert size in content
    return content.replace(size, height.to_bytes(2, "big") + width.to_bytes(2, "big"))


CLAIMS: dict[str, tuple[str, Any]] = {
    "GIF": ("video", lambda: gif_of(65_535, 65_535)),
    "GIF, half": ("video", lambda: gif_of(12_000, 12_000)),
    "GIF as a picture": ("image", lambda: gif_of(65_535, 65_535)),
    "JPEG": ("video", lambda: avi_of(65_000, 65_000)),
    "PNG": ("image", lambda: png(FRAMES[0])[:16] + b"\x7f\xff\xff\xff" * 2 + png(FRAMES[0])[24:]),
}
READ = """
import resource, sys
from mmgen.runtime import MmgenError
from mmgen.runtime.media.read import read_media
from mmgen.runtime.storage.schema import Media
import av, PIL.Image, PIL.GifImagePlugin, PIL.PngImagePlugin
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kind, fit = sys.argv[2], sys.argv[3] == "True"
shape = (16, 16, 3) if kind == "image" else (4, 16, 16, 3)
try:
    read_media(sys.argv[1], Media(kind, shape, "uint8", rate=8.0), fit=fit)
except MmgenError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("fit", [False, True])
def test_what_a_header_claims_takes_no_memory(tmp_path: Path, claim: str, fit: bool) -> None:
    kind, content = CLAIMS[claim]
    (tmp_path / "a").write_bytes(content())
    command = [sys.executable, "-c", READ, str(tmp_path / "a"), kind, str(fit)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    error, kilobytes = ran.stdout.splitlines()
    assert "wanted a" in error and ran.stderr == ""
    assert int(kilobytes) < 64_000


def test_a_film_without_end_is_read_up_to_its_last_wanted_frame() -> None:
    """Frames are looked at one by one: the ones behind may be damaged."""
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in FRAMES[[0, 1, 2, 3] * 50]]
    content = io.BytesIO()
    pictures[0].save(content, "gif", save_all=True, append_images=pictures[1:], duration=120)
    damaged = content.getvalue()[: len(content.getvalue()) // 2] + b"\xff" * 1000
    with pytest.raises(MmgenError, match="got more than 4 frames"):
        read_media(damaged, MEDIA["video"])
    with pytest.warns(UserWarning, match="cut to its first 0.5 s, 4 frames"):
        assert read_media(damaged, MEDIA["video"], fit=True).shape == (4, 16, 16, 3)
