"""Starting from something of which a part is kept: behind a mask in a picture, or a prefix on any axis."""

import json
from collections.abc import Iterator
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
from mmgen.runtime.solvers.registry import ON_DIFFUSION, table
from mmgen.runtime.verify import relative_rms

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (16, 16, 3)).astype(np.uint8)
LATENTS = RNG.standard_normal((1, 4, 8, 8), np.float32)
RIGHT = np.arange(8) >= 3  # (w,): all but a prefix of 3 columns
ASKED: dict[str, Any] = {"prompt": "red apple", "steps": 6, "seed": 3}


@pytest.fixture(scope="module")
def generator(bundle_folder: Path, cpu: str) -> Iterator[Generator]:
    with load(bundle_folder, cpu, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("strength", [0.3, 0.7])
@pytest.mark.parametrize("solver", ON_DIFFUSION)
def test_rows_are_the_definitions(generator: Generator, solver: str, strength: float) -> None:
    rows = table(solver, generator.bundle.process, 6, begin=6 - int(6 * strength))
    shape = generator.bundle.latent_shape
    noises = np.stack([noise(3, 1, shape, stream=i + 1) for i in range(len(rows))])
    keep = np.broadcast_to(~RIGHT, LATENTS.shape)
    *_, state = run(
        rows, denoiser(generator, prompt="red apple"), noise(3, 1, shape), noises=noises, data=LATENTS, keep=keep
    )
    result = generator.generate(**ASKED, solver=solver, latents=LATENTS, mask=RIGHT, strength=strength)
    assert relative_rms(result.latents, state[0]) < LIMITS["solver, played from the middle"]


def test_what_is_kept_comes_back_to_the_bit_and_the_rest_fits_the_request(generator: Generator) -> None:
    apple, pear = (
        generator.generate(**ASKED | {"prompt": prompt}, latents=LATENTS, mask=RIGHT).latents
        for prompt in ("red apple", "pear")
    )
    for made in (apple, pear):
        assert np.array_equal(made[..., ~RIGHT], LATENTS[..., ~RIGHT])
        assert relative_rms(made[..., RIGHT], LATENTS[..., RIGHT]) > 0.5
    assert not np.array_equal(apple, pear)


def test_without_a_strength_the_rest_starts_from_noise_alone(generator: Generator) -> None:
    """The first evaluation sees nothing of what was there."""
    other = np.where(RIGHT, 9.0, LATENTS).astype(np.float32)
    results = [generator.generate(**ASKED, latents=latents, mask=RIGHT) for latents in (LATENTS, other)]
    assert np.array_equal(results[0].latents, results[1].latents)
    assert results[0].evaluations == 6
    weaker = [generator.generate(**ASKED, latents=latents, mask=RIGHT, strength=0.5) for latents in (LATENTS, other)]
    assert not np.array_equal(weaker[0].latents, weaker[1].latents)


def test_a_mask_that_is_true_everywhere_keeps_nothing(generator: Generator) -> None:
    everywhere = generator.generate(**ASKED, latents=LATENTS, mask=np.ones(8, bool))
    assert np.array_equal(everywhere.latents, generator.generate(**ASKED).latents)


def test_a_request_without_a_mask_after_one_with_it_keeps_nothing(generator: Generator) -> None:
    plain = generator.generate(**ASKED)
    generator.generate(**ASKED, latents=LATENTS, mask=RIGHT)
    assert np.array_equal(generator.generate(**ASKED).latents, plain.latents)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_prefix_on_any_axis(generator: Generator, axis: int) -> None:
    mask = np.moveaxis(np.ones((1, 4, 8, 8), bool), axis, 0)
    mask[:2] = False
    mask = np.moveaxis(mask, 0, axis)
    made = generator.generate(**ASKED, latents=LATENTS, mask=mask).latents
    assert np.array_equal(made[~mask], LATENTS[~mask])
    assert not np.isclose(made[mask], LATENTS[mask]).any()


def test_a_position_with_any_pixel_in_the_mask_is_regenerated(generator: Generator) -> None:
    """Two pixels a position: rows 0 to 4 of pixels are rows 0 to 2 of positions."""
    pixels = np.zeros((16, 16), bool)
    pixels[:5] = True
    by_pixels = generator.generate(**ASKED, image=PICTURE, mask=pixels)
    by_places = generator.generate(**ASKED, image=PICTURE, mask=np.arange(8)[:, None] < 3)
    assert np.array_equal(by_pixels.latents, by_places.latents)


def test_each_sample_may_have_its_own_mask(generator: Generator) -> None:
    masks = np.zeros((2, 16, 16), bool)
    masks[0, :8] = masks[1, 8:] = True
    alike = np.repeat(noise(3, 1, (4, 8, 8)), 2, 0)
    both = generator.generate(**ASKED, image=PICTURE, mask=masks, count=2, noise=alike)
    for i, mask in enumerate(masks):
        alone = generator.generate(**ASKED, image=PICTURE, mask=mask)
        assert relative_rms(both.latents[i], alone.latents[0]) < LIMITS["solver, played from the middle"]


def test_previews_and_early_ends_show_what_is_kept(generator: Generator) -> None:
    shown = list(generator.stream(**ASKED, latents=LATENTS, mask=RIGHT))
    assert np.array_equal(shown[-1].result().latents, generator.generate(**ASKED, latents=LATENTS, mask=RIGHT).latents)
    ended = generator.generate(**ASKED | {"steps": 200}, latents=LATENTS, mask=RIGHT, deadline=1e-9)
    assert np.array_equal(ended.latents[..., ~RIGHT], LATENTS[..., ~RIGHT])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": RIGHT}, r"mask, got bool \(8,\), wanted an image or latents to start from"),
        ({"mask": np.zeros(8, bool)}, "nothing is to be regenerated, wanted true at some positions"),
        ({"mask": np.ones(8)}, r"got float64 \(8,\), wanted bool .* to \(1, 4, 8, 8\), or \(16, 16\) as pixels"),
        ({"mask": np.ones((16, 8), bool)}, r"mask, got bool \(16, 8\), wanted"),
        ({"mask": np.ones((2, 16, 16), bool)}, r"mask, got bool \(2, 16, 16\), wanted"),
        ({"mask": "mask.png"}, "mask, got str"),
    ],
)
def test_a_bad_mask_is_one_clear_line(generator: Generator, arguments: dict[str, Any], message: str) -> None:
    start = {} if message.startswith("mask, got bool \\(8,\\)") else {"latents": LATENTS}
    with pytest.raises(MmgenError, match=message) as caught:
        generator.generate(**ASKED, **start, **arguments)
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_a_picture_and_a_mask(generator: Generator, bundle_folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((16, 16), bool)
    mask[4:12, 4:12] = True
    (tmp_path / "picture.png").write_bytes(png(PICTURE))
    (tmp_path / "mask.png").write_bytes(png(np.repeat(mask[..., None], 3, -1).astype(np.uint8) * 255))
    np.save(tmp_path / "latents.npy", LATENTS)
    np.save(tmp_path / "mask.npy", RIGHT)
    for start, mask_file, wanted in [
        ("--image=picture.png", "mask.png", generator.generate(**ASKED, image=PICTURE, mask=mask)),
        ("--latents=latents.npy", "mask.npy", generator.generate(**ASKED, latents=LATENTS, mask=RIGHT)),
    ]:
        option, name = start.split("=")
        asked = ["--prompt=red apple", "--steps=6", "--seed=3", f"{option}={tmp_path / name}"]
        out = tmp_path / "out.npy"
        result = CliRunner().invoke(
            main,
            ["generate", str(bundle_folder), *asked, f"--mask={tmp_path / mask_file}", f"--backend={generator.backend}",
             "-o", str(out), "--json"],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert np.abs(np.load(out).astype(int) - wanted.media).max() <= 1  # another number of threads
        assert json.loads(result.stdout)["request"]["mask"] == str(tmp_path / mask_file)
