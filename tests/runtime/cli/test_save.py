"""What ``mmgen generate`` leaves on disk for each kind of media: the suffix decides."""

import csv
import wave
from pathlib import Path

import numpy as np
import pytest
from commands import done, mmgen
from recorded import png

from mmgen.runtime import MmgenError
from mmgen.runtime.cli.save import Samples, destination
from mmgen.runtime.media.write import SUFFIXES, suffixes
from mmgen.runtime.storage.schema import Media

KINDS = {
    "image": Media("image", (6, 8, 3), "uint8"),
    "video": Media("video", (3, 6, 8, 3), "uint8", rate=8.0),
    "audio": Media("audio", (100, 1), "float32", rate=16_000.0),
    "series": Media("series", (4, 2), "float32", labels=("x", "y")),
    "text": Media("text", (5,), "int64"),
    "codes": Media("codes", (4,), "int64"),
    "array": Media("array", (4,), "float32"),
}
STARTS = {
    ".png": b"\x89PNG", ".jpg": b"\xff\xd8", ".webp": b"RIFF", ".gif": b"GIF8", ".mp4": b"\0\0\0", ".wav": b"RIFF",
    ".flac": b"fLaC", ".csv": b"x,y\n", ".txt": b"cat 0", ".npy": b"\x93NUMPY",
}  # fmt: skip
ALL = [(kind, suffix) for kind, known in SUFFIXES.items() for suffix in known]


def samples(media: Media, count: int, suffix: str) -> Samples:
    made = np.random.default_rng(0).integers(0, 2, (count, *media.shape)).astype(media.dtype)
    labels = tuple(f"cat-{i}" for i in range(count))
    return Samples([f"cat {i}" for i in range(count)] if suffix == ".txt" else made, labels, {"seed": 7})


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL", reason="pictures are written with Pillow")
    pytest.importorskip("av", reason="film and sound are written with PyAV")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("kind", "suffix"), ALL)
def test_a_name_is_a_file_of_its_suffix(kind: str, suffix: str) -> None:
    with destination(f"out{suffix}", KINDS[kind]) as save:
        assert save(samples(KINDS[kind], 1, suffix)) == [Path(f"out{suffix}")]
    assert Path(f"out{suffix}").read_bytes().startswith(STARTS[suffix])


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gets_a_file_a_sample_of_the_first_kind(kind: str) -> None:
    first = suffixes(KINDS[kind])[0]
    with destination("folder/", KINDS[kind], 2) as save:
        files = save(samples(KINDS[kind], 2, first))
    assert files == [Path(f"folder/000-cat-0{first}"), Path(f"folder/001-cat-1{first}")]
    assert all(file.read_bytes().startswith(STARTS[first][:3]) for file in files)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["out", "out.doc", "out.svg", "out.png.zip"])
def test_an_error_lists_what_the_kind_can_be(kind: str, name: str) -> None:
    names = " or ".join(f"NAME{suffix}" for suffix in suffixes(KINDS[kind]))
    said = f"output {name}, wanted {names} or FOLDER/ for media of kind {kind}"
    with pytest.raises(MmgenError, match=said), destination(name, KINDS[kind]):
        pytest.fail("the block was entered")
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("kind", "suffix"), [("audio", ".wav"), ("audio", ".flac"), ("series", ".csv")])
def test_a_file_of_one_sample_is_refused_before_there_are_several(kind: str, suffix: str) -> None:
    said = rf"out\{suffix} holds one sample, got 2; write them into a folder"
    with pytest.raises(MmgenError, match=said), destination(f"out{suffix}", KINDS[kind], 2):
        pytest.fail("the block was entered")
    assert list(Path.cwd().iterdir()) == []


def test_files_are_what_other_programs_take_them_for() -> None:
    for kind, suffix in (("audio", ".wav"), ("series", ".csv"), ("text", ".txt")):
        with destination(f"out{suffix}", KINDS[kind]) as save:
            save(samples(KINDS[kind], 1, suffix))
    with wave.open("out.wav") as file:
        assert (file.getframerate(), file.getnframes(), file.getnchannels()) == (16_000, 100, 1)
    with open("out.csv", newline="") as file:
        assert next(csv.reader(file)) == ["x", "y"]
    assert Path("out.txt").read_bytes() == b"cat 0\n"


def test_tokens_are_no_text_yet() -> None:
    with destination("out.txt", KINDS["text"]) as save, pytest.raises(MmgenError, match=r"media can't be written as"):
        save(samples(KINDS["text"], 1, ".npy"))


def test_the_command_line_writes_a_photograph_and_takes_one_of_any_size(bundle_copy: Path) -> None:
    done("generate", "b.mmgen", "--prompt=red", "--steps=1", "-o", "out.jpg")
    assert Path("out.jpg").read_bytes().startswith(b"\xff\xd8")
    Path("large.png").write_bytes(png(np.zeros((40, 30, 3), np.uint8)))
    asked = ("generate", "b.mmgen", "--prompt=red", "--steps=2", "--image=large.png", "-o", "out.npy")
    refused = mmgen(*asked)
    assert refused.exit_code == 1 and not Path("out.npy").exists()
    assert "large.png, got 30 x 40 pixels, wanted a picture of 16 x 16" in refused.stderr
    assert "--resize" in refused.stderr
    done(*asked, "--resize")
    assert np.load("out.npy").shape == (1, 16, 16, 3)
