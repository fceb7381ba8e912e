"""A solver's rows through the exported step graph are the reference loop over the same denoiser."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from one_row import denoiser
from tolerances import LIMITS

from mmgen.runtime import Generator, load
from mmgen.runtime.request.noise import noise
from mmgen.runtime.solvers.reference import run
from mmgen.runtime.solvers.registry import ON_DIFFUSION, table
from mmgen.runtime.storage.process import Diffusion

SEED, STEPS = 3, 5


@pytest.fixture(scope="module")
def loaded(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, backend="ort-cpu") as opened:
        yield opened


@pytest.mark.parametrize("solver", ON_DIFFUSION)
def test_a_solver_is_played_as_it_is_defined(loaded: Generator, solver: str) -> None:
    process = loaded.bundle.process
    assert isinstance(process, Diffusion)
    exact = table(solver, process, STEPS)
    shape = loaded.bundle.latent_shape
    noises = np.stack([noise(SEED, 1, shape, stream) for stream in range(1, len(exact) + 1)])
    assert exact.stochastic.any() == (solver in ("ddpm", "euler-ancestral", "dpmpp-sde-2m"))
    *_, wanted = run(exact, denoiser(loaded, prompt="red apple"), noise(SEED, 1, shape), noises=noises)
    latents = loaded.generate(prompt="red apple", solver=solver, steps=STEPS, seed=SEED).latents
    error = np.linalg.norm(latents - wanted[0]) / np.linalg.norm(wanted[0])
    assert error < LIMITS["solver, played"]


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("solver", ON_DIFFUSION)
def test_a_solver_is_played_from_the_middle(loaded: Generator, solver: str, strength: float) -> None:
    """Given latents, noised to the level of the first step that is left, and nothing remembered."""
    shape = loaded.bundle.latent_shape
    process, given = loaded.bundle.process, noise(8, 1, shape)
    exact = table(solver, process, STEPS, begin=STEPS - round(STEPS * strength))
    noises = np.stack([noise(SEED, 1, shape, stream) for stream in range(1, len(exact) + 1)])
    denoise = denoiser(loaded, prompt="red apple")
    *_, wanted = run(exact, denoise, noise(SEED, 1, shape), noises=noises, data=given)
    asked = {"prompt": "red apple", "solver": solver, "steps": STEPS, "seed": SEED}
    result = loaded.generate(**asked, latents=given, strength=strength)
    assert result.evaluations == len(exact)
    error = np.linalg.norm(result.latents - wanted[0]) / np.linalg.norm(wanted[0])
    assert error < LIMITS["solver, played from the middle"]


def test_one_bundle_plays_them_all_and_stays_as_it_is(bundle_folder: Path) -> None:
    def files() -> dict[Path, str]:
        paths = bundle_folder.rglob("*")
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path.is_file()}

    before = files()
    with load(bundle_folder, backend="ort-cpu") as generator:
        made = [generator.generate(prompt="red apple", solver=solver, steps=2).latents for solver in ON_DIFFUSION]
    assert all(np.isfinite(latents).all() for latents in made)
    assert len({latents.tobytes() for latents in made}) > len(ON_DIFFUSION) // 2, "they are solvers of their own"
    assert files() == before
