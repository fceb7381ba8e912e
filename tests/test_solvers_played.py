"""A solver's rows through the exported step graph are the reference loop over the same denoiser."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tolerances import LIMITS

from mmgen.runtime import Generator, generator, load
from mmgen.runtime.noise import noise
from mmgen.runtime.process import Diffusion
from mmgen.runtime.reference import run
from mmgen.runtime.rows import OUT, X, no_transition, rows
from mmgen.runtime.solvers import ON_DIFFUSION, table

SEED, STEPS = 3, 5
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def loaded(bundle_folder: Path) -> Iterator[Generator]:
    with load(bundle_folder, backend="ort-cpu") as opened:
        yield opened


def denoiser_of(loaded: Generator, monkeypatch: pytest.MonkeyPatch, x: Array, timestep: float) -> Array:
    """The denoiser's output after guidance: what a single row keeps of it and of nothing else."""
    transition = no_transition(1)
    transition[0, X, OUT] = 1
    row = rows(np.array([timestep]), np.zeros((1, 2)), transition.astype(np.float32))
    with monkeypatch.context() as patch:
        patch.setattr(generator, "solver_table", lambda *_, **__: row)
        return loaded.generate(prompt="red apple", noise=x).latents


@pytest.mark.parametrize("solver", ON_DIFFUSION)
def test_a_solver_is_played_as_it_is_defined(loaded: Generator, monkeypatch: pytest.MonkeyPatch, solver: str) -> None:
    process = loaded.bundle.process
    assert isinstance(process, Diffusion)
    exact = table(solver, process, STEPS)
    shape = loaded.bundle.latent_shape
    noises = np.stack([noise(SEED, 1, shape, stream) for stream in range(1, len(exact) + 1)])
    assert exact.stochastic.any() == (solver in ("ddpm", "euler-ancestral", "dpmpp-sde-2m"))
    *_, wanted = run(exact, lambda x, t: denoiser_of(loaded, monkeypatch, x, t), noise(SEED, 1, shape), noises=noises)
    latents = loaded.generate(prompt="red apple", solver=solver, steps=STEPS, seed=SEED).latents
    error = np.linalg.norm(latents - wanted[0]) / np.linalg.norm(wanted[0])
    assert error < LIMITS["solver, played"]
