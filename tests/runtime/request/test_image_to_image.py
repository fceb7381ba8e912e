"""Starting from something: media through the encoder, or latents, noised to the level that the strength picks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from one_row import denoiser
from recorded import png
from tolerances import LIMITS

from mmgen.runtime import Generator, MmgenError, load
from mmgen.runtime.cli.main import main
from mmgen.runtime.request.noise import noise
from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import table

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
ASKED: dict[str, Any] = {"prompt": "red apple", "steps": 10, "seed": 3}


@pytest.fixture(scope="module")
def generator(bundle_folder: Path, cpu: str) -> Iterator[Generator]:
    with load(bundle_folder, cpu, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def encoded(bundle_folder: Path) -> np.ndarray:
    """Latents of the picture, by ONNX Runtime alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(bundle_folder / "graphs/encode.onnx", providers=["CPUExecutionProvider"])
    latents: np.ndarray = session.run(["latents"], {"media": PICTURE[None]})[0]
    return latents


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Relative RMS."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_a_picture_is_encoded_noised_and_denoised(generator: Generator, encoded: np.ndarray) -> None:
    rows = table("ddim", generator.bundle.process, 10, begin=4)
    start = noise(3, 1, generator.bundle.latent_shape)
    *_, state = run(rows, denoiser(generator, prompt="red apple"), start, data=encoded)
    result = generator.generate(**ASKED, image=PICTURE, strength=0.6)
    assert apart(result.latents, state[0]) < LIMITS["solver, played from the middle"]
    assert (result.steps, result.evaluations, len(result.timings.steps)) == (10, 6, 6)
    assert result.timings.encode > 0


def test_a_picture_and_its_latents_are_the_same_start(generator: Generator, encoded: np.ndarray) -> None:
    from_picture = generator.generate(**ASKED, image=PICTURE, strength=0.5)
    from_latents = generator.generate(**ASKED, latents=encoded, strength=0.5)
    assert np.array_equal(from_picture.media, from_latents.media)
    assert from_latents.timings.encode == 0


@pytest.mark.parametrize(
    ("steps", "strength", "evaluations"),
    [(10, 1.0, 10), (10, 0.75, 7), (10, 0.1, 1), (50, 0.8, 40), (3, 0.5, 1), (7, None, 5), (30, 0.35, 10)],
)
def test_strength_counts_steps_as_diffusers_does(
    generator: Generator, encoded: np.ndarray, steps: int, strength: float | None, evaluations: int
) -> None:
    """min(int(steps strength), steps), 0.8 where nothing is said."""
    result = generator.generate(**ASKED | {"steps": steps}, latents=encoded, strength=strength)
    assert result.evaluations == evaluations == min(int(steps * (0.8 if strength is None else strength)), steps)
    assert result.complete


def test_the_less_strength_the_nearer_to_the_start(generator: Generator, encoded: np.ndarray) -> None:
    results = [generator.generate(**ASKED, latents=encoded, strength=strength) for strength in (0.1, 0.5, 1)]
    distances = [apart(result.latents, encoded) for result in results]
    assert distances == sorted(distances)
    assert distances[0] < distances[2] / 3


def test_one_picture_serves_all_samples_or_each_has_its_own(generator: Generator) -> None:
    asked: dict[str, Any] = {**ASKED, "strength": 0.5}
    two = np.stack([PICTURE, 255 - PICTURE])
    shared = generator.generate(**asked, image=PICTURE, count=2)
    each = generator.generate(**asked, image=two, count=2)
    assert apart(shared.latents[:1], each.latents[:1]) < LIMITS["solver, played from the middle"]
    assert apart(shared.latents[1:], each.latents[1:]) > 0.05


def test_the_noise_is_the_seed_s_or_the_given(generator: Generator, encoded: np.ndarray) -> None:
    asked: dict[str, Any] = {**ASKED, "latents": encoded, "strength": 0.5}
    given = generator.generate(**asked, noise=noise(3, 1, generator.bundle.latent_shape))
    assert np.array_equal(given.latents, generator.generate(**asked).latents)
    assert apart(generator.generate(**asked | {"seed": 4}).latents, given.latents) > 0.1


def test_a_stream_starts_alike(generator: Generator) -> None:
    asked: dict[str, Any] = {**ASKED, "image": PICTURE, "strength": 0.3, "solver": "euler-ancestral"}
    shown = list(generator.stream(**asked))
    assert [progress.evaluation for progress in shown] == [1, 2, 3] and shown[-1].last and not shown[0].last
    assert np.array_equal(shown[-1].result().latents, generator.generate(**asked).latents)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength, got 0.5, wanted an image or latents to start from"),
        ({"image": PICTURE, "strength": 0.0}, "strength, got 0.0, wanted more than 0"),
        ({"image": PICTURE, "strength": 1.5}, "strength, got 1.5"),
        ({"image": PICTURE, "strength": 0.05}, "strength 0.05 leaves none of 10 steps; ask for at least 20 steps"),
        ({"image": PICTURE, "latents": np.zeros((1, 4, 8, 8), np.float32)}, "image and latents; give one of them"),
        ({"image": PICTURE[:8]}, r"image, got uint8 \(8, 16, 3\), wanted uint8 \(16, 16, 3\) or .*; resize it"),
        ({"image": PICTURE.astype(np.float32)}, "image, got float32"),
        ({"image": "picture.png"}, "image, got str"),
        ({"image": np.stack([PICTURE] * 3), "count": 2}, "image, got .*, wanted one, or one for each of 2 samples"),
        ({"latents": np.zeros((1, 4, 8, 8))}, r"latents, got float64"),
        ({"latents": np.zeros((2, 4, 8, 8), np.float32)}, r"latents, got float32 \(2, "),
    ],
)
def test_a_bad_start_is_one_clear_line(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**ASKED, **arguments)
    assert "\n" not in str(caught.value)


def test_a_bundle_without_an_encoder_says_so(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(generator.bundle.graphs, "encode")
    with pytest.raises(MmgenError, match=r"no encoder.*start from latents"):
        generator.generate(**ASKED, image=PICTURE)


@pytest.mark.parametrize("name", ["picture.png", "picture.npy"])
def test_the_command_line_starts_from_a_file(
    generator: Generator, bundle_folder: Path, tmp_path: Path, name: str
) -> None:
    if name.endswith(".png"):
        (tmp_path / "picture.png").write_bytes(png(PICTURE))
    np.save(tmp_path / "picture.npy", PICTURE)
    out = tmp_path / "out.npy"
    asked = ["--prompt=red apple", "--steps=10", "--seed=3", f"--image={tmp_path / name}", "--strength=0.5"]
    result = CliRunner().invoke(
        main, ["generate", str(bundle_folder), *asked, f"--backend={generator.backend}", "-o", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    wanted = generator.generate(**ASKED, image=PICTURE, strength=0.5)
    assert np.abs(np.load(out).astype(int) - wanted.media).max() <= 1  # another number of threads
    record = json.loads(result.stdout)
    delivered = {"steps_asked": 10, "steps": 10, "evaluations": 5, "evaluations_run": 5, "complete": True}
    assert record["delivered"] == delivered
    assert record["request"]["image"] == str(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read (No such file"),
        (lambda: b"text", "is no picture"),
        (lambda: png(PICTURE)[:99], "can't be read"),
        (lambda: png(PICTURE[:8]), "resize"),
    ],
)
def test_a_file_that_is_no_picture_is_one_line(
    bundle_folder: Path, tmp_path: Path, content: Callable[[], bytes] | None, message: str
) -> None:
    pytest.importorskip("PIL", reason="pictures are read with Pillow")
    if content is not None:
        (tmp_path / "in.png").write_bytes(content())
    result = CliRunner().invoke(
        main, ["generate", str(bundle_folder), f"--image={tmp_path / 'in.png'}", "-o", str(tmp_path / "out.png")]
    )
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out.png").exists()
