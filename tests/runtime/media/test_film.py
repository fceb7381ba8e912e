"""Film: GIF, WebP and PNG by Pillow, MP4 and its like by PyAV; sizes, rates and numbers of frames."""

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import film, png
from tolerances import LIMITS

from mmgen.runtime import MmgenError
from mmgen.runtime.media.read import read_media
from mmgen.runtime.media.write import media_file, suffixes, write_media
from mmgen.runtime.storage.schema import Media

T, H, W = 6, 20, 24
COLOURS = np.random.default_rng(0).integers(0, 256, (30, 3), np.uint8)  # few enough for a GIF
FILM = COLOURS[np.random.default_rng(1).integers(0, 30, (T, H, W))]
MEDIA = Media("video", (T, H, W, 3), "uint8", rate=8.0)
SMOOTH = np.stack([
    np.stack(np.broadcast_arrays(np.arange(W) * 8, np.arange(H)[:, None] * 10, np.full((H, W), 30 * t)), -1)
    for t in range(T)
]).astype(np.uint8)  # fmt: skip


@pytest.fixture
def image() -> Any:
    return pytest.importorskip("PIL.Image", reason="animations are read and written with Pillow")


def animation(image: Any, frames: Any, kind: str = "gif", duration: Any = 125, **options: Any) -> bytes:
    """Frames as Pillow itself writes them; ``duration`` in milliseconds, of all or of each."""
    first, *others = (frame if hasattr(frame, "save") else image.fromarray(frame) for frame in frames)
    content = io.BytesIO()
    first.save(content, kind, save_all=True, append_images=others, duration=duration, **options)
    return content.getvalue()


def media(**changed: Any) -> Media:
    return Media("video", **{"shape": (T, H, W, 3), "dtype": "uint8", "rate": 8.0, **changed})


# animations


@pytest.mark.parametrize("rate", [5.0, 8.0, 24.0, 29.97, 50.0])
@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_comes_back_to_the_bit_and_plays_as_long(image: Any, suffix: str, rate: float) -> None:
    content = media_file(FILM[None], suffix, media(rate=rate))
    assert np.array_equal(read_media(content, media(rate=rate)), FILM)
    with image.open(io.BytesIO(content)) as written:
        assert written.n_frames == T and written.info["loop"] == 0
        lengths = []
        for frame in range(T):
            written.seek(frame)
            written.load()
            lengths.append(written.info["duration"])
    tick = {".gif": 10, ".webp": 1}[suffix]
    assert abs(sum(lengths) - 1000 * T / rate) <= tick / 2, "each begins at the nearest moment, so none adds up"


def test_a_gif_of_more_frames_than_players_show_is_slower(image: Any) -> None:
    content = media_file(FILM[None], ".gif", media(rate=100.0))
    assert image.open(io.BytesIO(content)).info["duration"] == 20
    assert np.array_equal(read_media(content, media(rate=50.0)), FILM)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_frames_in_which_nothing_moves_come_back(image: Any, suffix: str) -> None:
    still = FILM[[0, 0, 1, 2, 2, 2]]
    content = media_file(still[None], suffix, MEDIA)
    assert image.open(io.BytesIO(content)).n_frames == 3, "written as one that lasts longer"
    assert np.array_equal(read_media(content, MEDIA), still)


@pytest.mark.parametrize(("kind", "options"), [("gif", {}), ("webp", {"lossless": True}), ("png", {})])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_an_animation_of_pillow_s_is_read_as_it_is_shown(
    image: Any, kind: str, options: dict[str, Any], disposal: int
) -> None:
    if kind != "webp":
        options = {**options, "disposal": disposal}
    content = animation(image, FILM, kind, **options)
    assert np.array_equal(read_media(content, MEDIA), FILM)


def test_what_a_frame_leaves_out_is_the_frame_before_or_white(image: Any) -> None:
    frames = [np.full((H, W, 4), (255, 0, 0, 255), np.uint8), np.zeros((H, W, 4), np.uint8)]
    frames[0][:, W // 2 :] = 0
    frames[1][:10] = (0, 0, 255, 255)
    made = {}
    for disposal in (1, 2):  # the first frame stays, or is wiped away
        pictures = [image.fromarray(frame) for frame in frames]
        content = animation(image, pictures, "gif", disposal=disposal)
        made[disposal] = read_media(content, media(shape=(2, H, W, 3)))
        assert (made[disposal][0, :, : W // 2] == (255, 0, 0)).all() and (made[disposal][0, :, W // 2 :] == 255).all()
        assert (made[disposal][1, :10] == (0, 0, 255)).all()
    assert np.array_equal(made[1][1, 10:], made[1][0, 10:]) and (made[2][1, 10:] == 255).all()


def test_frames_of_differing_lengths_are_read_at_their_times(image: Any) -> None:
    content = animation(image, FILM[:3], duration=[250, 120, 380])  # at 8 a second 2, 1 and 3
    assert np.array_equal(read_media(content, MEDIA), FILM[[0, 0, 1, 2, 2, 2]])
    content = animation(image, FILM[:3], duration=[200, 100, 450])
    with pytest.raises(MmgenError, match="frames a second, wanted a film of 6 frames of 24 x 20 at 8 a second"):
        read_media(content, MEDIA)
    assert np.array_equal(read_media(content, MEDIA, fit=True), FILM[[0, 0, 1, 2, 2, 2]])


def test_frames_without_lengths_are_shown_as_players_do(image: Any) -> None:
    assert np.array_equal(read_media(animation(image, FILM, duration=0), media(rate=10.0)), FILM)


def test_a_picture_is_a_film_of_one_frame(image: Any) -> None:
    assert np.array_equal(read_media(png(FILM[0]), media(shape=(1, H, W, 3))), FILM[:1])
    with pytest.raises(MmgenError, match="got 1 frames, wanted a film of 6 frames"):
        read_media(png(FILM[0]), MEDIA)


# containers


@pytest.mark.parametrize(("container", "codec"), [
    ("mp4", "libx264"), ("mov", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "ffv1"),
])  # fmt: skip
def test_film_that_pyav_wrote_is_read(container: str, codec: str) -> None:
    made = read_media(film(SMOOTH, container=container, codec=codec), MEDIA)
    assert np.abs(made.astype(int) - SMOOTH).mean() < LIMITS["film, levels"]


@pytest.mark.parametrize("rate", [8.0, 12.5, 29.97, 60.0])
@pytest.mark.parametrize("size", [(20, 24), (19, 24), (20, 23), (19, 23)])
def test_an_mp4_has_its_rate_and_its_size(tmp_path: Path, rate: float, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av", reason="MP4 is written by PyAV")
    frames = SMOOTH[:, : size[0], : size[1]]
    write_media(tmp_path / "a.mp4", frames[None], media(shape=frames.shape, rate=rate))
    with av.open(str(tmp_path / "a.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.height, stream.width, stream.frames) == (*size, T)
        assert float(stream.average_rate) == pytest.approx(rate, rel=1e-6)
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == ("yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
    made = read_media(tmp_path / "a.mp4", media(shape=frames.shape, rate=rate))
    assert np.abs(made.astype(int) - frames).mean() < LIMITS["film, levels"]


def test_without_h264_an_mp4_is_mpeg_4(monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av", reason="MP4 is written by PyAV")
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    content = media_file(SMOOTH[None], ".mp4", MEDIA)
    with av.open(io.BytesIO(content)) as file:
        assert file.streams.video[0].codec_context.name == "mpeg4"
    assert np.abs(read_media(content, MEDIA).astype(int) - SMOOTH).mean() < LIMITS["film, levels"]


def test_frames_of_a_film_may_last_several_times_as_long() -> None:
    content = film(SMOOTH[:4], begins=[0, 1, 3, 4], codec="ffv1", container="matroska", pixels="yuv444p")
    made = read_media(content, media(shape=(5, H, W, 3)))
    assert np.abs(made.astype(int) - SMOOTH[[0, 1, 1, 2, 3]]).mean() < LIMITS["film, levels"]


@pytest.mark.parametrize(("turn", "matrix"), [(1, (0, -1, 1, 0)), (3, (0, 1, -1, 0)), (2, (-1, 0, 0, -1))])
def test_a_camera_held_upright_has_its_film_upright(turn: int, matrix: tuple[int, ...]) -> None:
    content = film(np.rot90(SMOOTH, -turn, (1, 2)))
    at = content.rindex(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2: the matrix a, b, u, c, d, v, x, y, w
    a, b, c, d = ((value << 16).to_bytes(4, "big", signed=True) for value in matrix)
    turned = content[:at] + a + b + bytes(4) + c + d + content[at + 20 :]
    assert np.abs(read_media(turned, MEDIA).astype(int) - SMOOTH).mean() < LIMITS["film, levels"]


# another size, rate or number of frames


def other(image: Any, kind: str, frames: np.ndarray, rate: float) -> bytes:
    return animation(image, frames, duration=round(1000 / rate)) if kind == "gif" else film(frames, rate=rate)


@pytest.mark.parametrize("kind", ["gif", "mp4"])
@pytest.mark.parametrize(
    ("frames", "rate", "words"),
    [
        (FILM[:, :10], 8.0, "got 24 x 10 pixels"),
        (np.rot90(FILM, 1, (1, 2)), 8.0, "got 20 x 24 pixels"),
        (FILM[:5], 8.0, "got 5 frames"),
        (FILM[[0, 1, 2, 3, 4, 5, 0]], 8.0, "got more than 6 frames"),
        (FILM, 10.0, "got about 10 frames a second"),
        (FILM[:3], 4.0, "got about 4 frames a second"),
        (FILM, 16.0, "got about 1[6-8].* frames a second"),
        (FILM[[0, 1, 2] * 4], 16.0, "got about 1[6-8].* frames a second"),
    ],
)
def test_what_differs_is_refused_and_both_are_named(
    image: Any, kind: str, frames: np.ndarray, rate: float, words: str
) -> None:
    with pytest.raises(MmgenError, match=f"{words}, wanted a film of 6 frames of 24 x 20 at 8 a second.*--resize"):
        read_media(other(image, kind, frames, rate), MEDIA)


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_asked_for_each_frame_is_the_one_that_is_shown_then(image: Any, kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        slow = read_media(other(image, kind, SMOOTH[:3], 4.0), MEDIA, fit=True)
        fast = read_media(other(image, kind, SMOOTH.repeat(5, 0), 40.0), MEDIA, fit=True)
    assert np.abs(slow.astype(int) - SMOOTH[[0, 0, 1, 1, 2, 2]]).mean() < LIMITS["film, levels"]
    assert np.abs(fast.astype(int) - SMOOTH).mean() < LIMITS["film, levels"]


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_asked_for_frames_are_resized_as_pictures_are(image: Any, kind: str) -> None:
    large = SMOOTH.repeat(3, 1).repeat(2, 2)
    made = read_media(other(image, kind, large, 8.0), MEDIA, fit=True)
    wanted = [read_media(png(frame), Media("image", (H, W, 3), "uint8"), fit=True) for frame in large]
    assert np.abs(made.astype(int) - np.stack(wanted)).mean() < LIMITS["film, levels"]


def test_asked_for_what_is_longer_is_cut_and_what_is_shorter_stands_still(image: Any) -> None:
    with pytest.warns(UserWarning, match=r"cut to its first 0\.75 s, 6 frames"):
        made = read_media(animation(image, FILM[[0, 1, 2, 3, 4, 5, 0, 1]]), MEDIA, fit=True)
    assert np.array_equal(made, FILM)
    with pytest.warns(UserWarning, match=r"its last frame is repeated up to 0\.75 s"):
        made = read_media(animation(image, FILM[:4]), MEDIA, fit=True)
    assert np.array_equal(made, FILM[[0, 1, 2, 3, 3, 3]])


def test_media_without_a_rate_takes_any(image: Any) -> None:
    assert np.array_equal(read_media(animation(image, FILM, duration=[20, 500] * 3), media(rate=None)), FILM)
    assert suffixes(media(rate=None)) == (".npy",)
    content = animation(image, FILM, duration=[20, 500] * 3)
    made = read_media(content, media(rate=None, shape=(3, H, W, 3)), fit=True)
    assert np.array_equal(made, FILM[::2]), "spread evenly over the film"
    assert np.array_equal(read_media(content, media(rate=None, shape=(12, H, W, 3)), fit=True), FILM.repeat(2, 0))


def test_a_refused_film_leaves_nothing_behind(image: Any, tmp_path: Path) -> None:
    """While its error is kept: no open file, and the program's own filters of warnings."""
    (tmp_path / "a.gif").write_bytes(animation(image, FILM, duration=50))
    filters, files = list(warnings.filters), len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MmgenError) as caught:
        read_media(tmp_path / "a.gif", MEDIA)
    assert list(warnings.filters) == filters and len(list(Path("/proc/self/fd").iterdir())) == files
    assert caught.value.__traceback__ is not None


# what can't be read


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_a_cut_animation_is_one_line(image: Any, kind: str) -> None:
    whole = animation(image, FILM, kind, **({"lossless": True} if kind == "webp" else {}))
    for end in range(1, len(whole) - 20, 53):
        with pytest.raises(MmgenError) as caught:
            read_media(whole[:end], MEDIA)
        assert "\n" not in str(caught.value) and "wanted a film of 6 frames" in str(caught.value)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("fit", [False, True])
def test_a_cut_film_is_one_line(container: str, fit: bool) -> None:
    whole = film(FILM, container=container)
    for end in range(1, round(len(whole) * 0.8), 97):
        with pytest.raises(MmgenError) as caught:
            read_media(whole[:end], MEDIA, fit=fit)
        assert "\n" not in str(caught.value) and "wanted a film of 6 frames" in str(caught.value)


def test_a_film_in_a_stream_that_is_cut_is_one_line() -> None:
    """The table of contents first, as for a web page: FFmpeg then reads what is there."""
    whole = film(FILM, movflags="frag_keyframe+empty_moov")
    for end in range(1, round(len(whole) * 0.8), 97):
        with pytest.raises(MmgenError) as caught:
            read_media(whole[:end], MEDIA, fit=True)
        assert "\n" not in str(caught.value)
