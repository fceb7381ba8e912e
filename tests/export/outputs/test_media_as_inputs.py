"""Sound, film and series as inputs, from arrays and from files, and a film as the output."""

import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done
from listener import FELT, FILM, SEEN, SOUND, listener
from tolerances import LIMITS

from mmgen.export.graphs.media import to_module
from mmgen.runtime import Generator, MmgenError, load

TONE = (0.5 * np.sin(np.arange(400) / 7))[:, None].astype(np.float32)
STEPS = np.arange(12, dtype=np.float32).reshape(FELT.shape) / 12
BLINK = np.zeros(SEEN.shape, np.uint8)
BLINK[1] = 255


@pytest.fixture(scope="module")
def folder(exported_once: Callable[..., Path]) -> Path:
    return exported_once(listener)


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[Generator]:
    with load(folder, "ort-cpu", threads=1) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same media in files: tone.wav, blink.gif and steps.csv."""
    image = pytest.importorskip("PIL.Image", reason="animations are read by Pillow")
    with wave.open(str(tmp_path / "tone.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(1000)
        sound.writeframes((TONE * 32767).round().astype("<i2").tobytes())
    first, *others = (image.fromarray(frame) for frame in BLINK)
    first.save(tmp_path / "blink.gif", save_all=True, append_images=others, duration=100, loop=0)
    rows = "\n".join(",".join(map(str, row)) for row in STEPS.tolist())
    (tmp_path / "steps.csv").write_text(f"force,torque\n{rows}\n")
    return tmp_path


def test_every_input_matters(generator: Generator) -> None:
    full = generator.generate(heard=TONE, seen=BLINK, felt=STEPS)
    assert full.media.shape == (1, *FILM.shape) and full.media.dtype == np.uint8
    for left_out in ("heard", "seen", "felt"):
        given = {"heard": TONE, "seen": BLINK, "felt": STEPS}
        given.pop(left_out)
        assert not np.array_equal(generator.generate(**given).latents, full.latents), left_out


def test_what_they_are_encoded_to_is_torch_s(generator: Generator) -> None:
    model, session = listener(), generator._opened["video"].session
    for name, media, given in (("heard", SOUND, TONE), ("seen", SEEN, BLINK)):
        with torch.no_grad():
            wanted = model.encoders[name](to_module(torch.from_numpy(given[None]), media)).numpy()
        assert np.allclose(session.features(name, given[None]), wanted, atol=LIMITS["features"])


def test_files_are_as_good_as_arrays(generator: Generator, files: Path) -> None:
    exact = generator.generate(seen=BLINK, felt=STEPS)
    assert np.array_equal(generator.generate(seen=files / "blink.gif", felt=files / "steps.csv").media, exact.media)
    heard, from_file = generator.generate(heard=TONE), generator.generate(heard=str(files / "tone.wav"))
    assert np.allclose(heard.latents, from_file.latents, atol=LIMITS["sound in sixteen bits, latents"])


def test_short_sound_is_silent_in_the_end(generator: Generator, files: Path) -> None:
    with wave.open(str(files / "short.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(1000)
        sound.writeframes((TONE[:100] * 32767).round().astype("<i2").tobytes())
    padded = np.concatenate([np.round(TONE[:100] * 32767) / 32768, np.zeros((300, 1))]).astype(np.float32)
    made = generator.generate(heard=files / "short.wav").latents
    assert np.array_equal(made, generator.generate(heard=padded).latents)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tone.wav", b"", "heard|tone"),
        ("blink.gif", b"GIF89a", "blink"),
        ("steps.csv", b"torque,force\n1,2\n", "torque"),
        ("steps.csv", b"force,torque\n1,nan\n", "nan"),
    ],
)
def test_files_that_are_broken_are_one_line(
    generator: Generator, files: Path, name: str, content: bytes, message: str
) -> None:
    (files / name).write_bytes(content)
    given = {"tone.wav": "heard", "blink.gif": "seen", "steps.csv": "felt"}[name]
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**{given: files / name})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4", ".npy"])
def test_film_is_written_in_every_kind_of_file(folder: Path, files: Path, suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("av", reason="PyAV writes MP4")
    out = files / f"out{suffix}"
    given = ("--heard", str(files / "tone.wav"), "--seen", str(files / "blink.gif"), "--felt", str(files / "steps.csv"))
    done("generate", str(folder), *given, "-o", str(out))
    assert out.stat().st_size > 100
