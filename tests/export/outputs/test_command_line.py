"""A bundle of several outputs on the command line: --want, inputs as options, files of every kind, and retrieval."""

import json
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from commands import done, mmgen
from four_outputs import PICTURE, four_outputs

from mmgen.runtime import load
from mmgen.runtime.storage.hashes import sha256

ANY = "any.mmgen"


@pytest.fixture
def here(exported_once: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a bundle and the pictures red.png, green.png and large.png."""
    image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
    (tmp_path / ANY).symlink_to(exported_once(four_outputs, "fp16"))
    for i, name in enumerate(("red", "green")):
        picture = np.zeros(PICTURE.shape, np.uint8)
        picture[..., i] = 200
        image.fromarray(picture).save(tmp_path / f"{name}.png")
    image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "large.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_text_is_all_that_is_printed(here: Path) -> None:
    said = done("generate", ANY, "--want", "caption", "--image", "red.png").stdout
    with load(ANY, "ort-cpu") as generator:
        assert said == generator.generate("caption", image="red.png").text + "\n"


def test_texts_go_into_a_file_as_well(here: Path) -> None:
    done("generate", ANY, "--want", "caption", "--image", "red.png", "--image", "green.png", "-o", "out.txt", "--json")


def test_each_kind_of_media_has_its_files(here: Path) -> None:
    done("generate", ANY, "--text", "a red cat", "-o", "cat.png")
    done("generate", ANY, "--want", "sound", "--text=a dog", "--image", "red.png", "-o", "dog.wav")
    done("generate", "--want", "motion", "--image", "red.png", ANY, "-o", "red.csv")
    with wave.open("dog.wav") as sound:
        assert (sound.getframerate(), sound.getnframes(), sound.getnchannels()) == (8000, 64, 1)
    header, *rows = Path("red.csv").read_text().splitlines()
    assert header == "x,y" and len(rows) == 8
    assert Path("cat.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_gets_a_file_a_sample(here: Path) -> None:
    given = ("--condition", "image=red.png", "--condition", "image=green.png")
    record = json.loads(done("generate", ANY, "--want", "motion", *given, "-o", "out/", "--json").stdout)
    assert [Path(file).name for file in record["files"]] == ["000.csv", "001.csv"]
    assert record["request"]["conditions"] == {"image": ["red.png", "green.png"]}


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (("--want", "film", "-o", "a.png"), "output, got 'film', wanted 'picture' or 'caption'", 1),
        (("--want", "motion", "--image", "large.png", "-o", "a.csv"), "large.png", 1),
        (("--want", "motion", "--image", "nowhere.png", "-o", "a.csv"), "nowhere.png", 1),
        (("--want", "motion", "--image", "red.png", "-o", "a.wav"), "wanted NAME.csv or NAME.npy", 1),
        (("--want", "motion", "--image", "red.png"), "Missing option '-o'", 2),
        (("--want", "motion", "--imagine", "red.png", "-o", "a.csv"), "--image'?", 2),
        (("--want", "motion", "--smell", "red.png", "-o", "a.csv"), "No such option", 2),
        (("--want", "motion", "-o", "a.csv", "--imag"), "No such option", 2),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(here: Path, arguments: tuple[str, ...], message: str, status: int) -> None:
    result = mmgen("generate", ANY, *arguments)
    assert result.exit_code == status and message in result.output
    assert not list(here.glob("a.*"))


def test_another_size_is_resized_when_that_is_asked_for(here: Path) -> None:
    done("generate", ANY, "--want", "motion", "--image", "large.png", "--resize", "-o", "a.csv")


def test_verify_compares_all_outputs_or_the_one_that_is_wanted(here: Path) -> None:
    record = json.loads(done("verify", ANY, "--backend", "ort-cpu", "--json").stdout)
    assert set(record["outputs"]) == {"picture", "caption", "sound", "motion"}
    one = json.loads(done("verify", ANY, "--backend", "ort-cpu", "--want", "motion", "--json").stdout)
    assert one["receipts"] == record["outputs"]["motion"]


def test_verify_reads_the_files_of_all_outputs_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("mmgen.runtime.storage.bundle.sha256", lambda path: read.append(path) or sha256(path))
    done("verify", ANY, "--backend", "ort-cpu")
    assert read and len(read) == len(set(read))


def test_inspect_shows_every_output_and_one(here: Path) -> None:
    shown = done("inspect", ANY).stdout
    assert [line for line in shown.splitlines() if line.startswith("output ")] == [
        f"output {name}" for name in ("picture", "caption", "sound", "motion")
    ]
    assert "series, float32 (8, 2), 50 a second" in done("inspect", ANY, "--want", "motion").stdout


def test_bench_measures_the_output_that_is_wanted(here: Path) -> None:
    given = ("--image", "red.png", "--runs", "2", "--warmup", "1", "--starts", "1", "--backend", "ort-cpu", "--json")
    record = json.loads(done("bench", ANY, "--want", "motion", *given).stdout)
    assert record["context"]["request"]["output"] == "motion" and len(record["starts"]) == 1


def test_what_was_embedded_is_found_again(here: Path) -> None:
    done("embed", ANY, "red.png", "green.png", "-o", "index.npz")
    found = json.loads(done("search", ANY, "index.npz", "green.png", "--json").stdout)["found"]
    assert [each["name"] for each in found] == ["green.png", "red.png"]
    assert found[0]["cosine"] == pytest.approx(1, abs=1e-6) and found[1]["cosine"] < found[0]["cosine"]
    assert "red.png" in done("search", ANY, "index.npz", "a red cat", "--top", "2").stdout


def test_lines_of_text_are_embedded_each(here: Path) -> None:
    Path("names.txt").write_text("a red cat\n\na dog runs\n")
    done("embed", ANY, "names.txt", "-o", "names.npz")
    found = json.loads(done("search", ANY, "names.npz", "a dog runs", "--json").stdout)["found"]
    assert [each["name"] for each in found] == ["a dog runs", "a red cat"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("embed", ANY, "nowhere.png", "-o", "i.npz"), "nowhere.png"),
        (("embed", ANY, "red.wav", "-o", "i.npz"), "--as text or --as image"),
        (("embed", ANY, "red.png", "--as", "sound", "-o", "i.npz"), "--as sound, wanted --as text or --as image"),
        (("embed", ANY, "red.png", "-o", "i.npy"), "wanted NAME.npz"),
        (("search", ANY, "red.png", "a"), "wanted an index that mmgen embed wrote"),
        (("search", ANY, "nowhere.npz", "a"), "nowhere.npz"),
        (("search", ANY, "other.npz", "a"), "3 numbers a vector"),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_not_be_embedded_or_searched_is_one_line(here: Path, arguments: tuple[str, ...], message: str) -> None:
    np.savez("other.npz", vectors=np.eye(3, dtype=np.float32), names=np.array(["a", "b", "c"]))
    result = mmgen(*arguments)
    assert result.exit_code == 1 and message in result.output, result.output
    assert not Path("i.npz").exists()
