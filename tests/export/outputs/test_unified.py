"""Unified models and captioners with modules of ``transformers``: token for token as the published samplers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import masked_samplers as published
import numpy as np
import pytest
import torch
from tolerances import LIMITS
from unified import (
    CODES,
    HEARD,
    LENGTH,
    PICTURE,
    PLACES,
    SPOKEN,
    WORDS,
    captioner,
    other_unified,
    pictures,
    unified,
)

from mmgen.export import Model
from mmgen.export.graphs.media import to_module
from mmgen.export.several import WEIGHTS, alone
from mmgen.runtime import Generator, load
from mmgen.runtime.request.tokens import uniforms
from mmgen.runtime.solvers.masked_reference import ended

Case = tuple[Generator, Model]
GUIDANCE, SEED, STEPS = 3.0, 5, 8
SPEECH = np.arange(HEARD)[::-1].copy() % SPOKEN


@pytest.fixture(scope="module", params=[unified, other_unified], ids=["two segments", "three segments"])
def case(request: pytest.FixtureRequest, exported_once: Callable[..., Path]) -> Iterator[Case]:
    with load(exported_once(request.param), "ort-cpu", threads=1) as generator:
        yield generator, request.param()


def drawn(rows: int, positions: int) -> np.ndarray:
    return np.stack([each.swapaxes(0, 1) for each in uniforms(SEED, (1, positions), rows).values()])


def speech(model: Model) -> dict[str, Any]:
    return {"speech": SPEECH} if any(each.name == "speech" for each in model.inputs) else {}


def as_ids(text: str) -> torch.Tensor:
    ids = [WORDS.index(word) for word in text.split()]
    return torch.tensor([ids + [0] * (LENGTH - len(ids))])


@torch.no_grad()
def logits(model: Model, output: str, tokens: np.ndarray, *given: torch.Tensor) -> np.ndarray:
    denoiser = alone(model, output).denoiser
    return denoiser(torch.from_numpy(tokens), *given).transpose(1, 2).numpy()


def test_a_picture_of_a_text_is_show_o_s(case: Case) -> None:
    generator, model = case
    heard = [torch.from_numpy(value[None]) for value in speech(model).values()]
    silent = [torch.zeros_like(each) for each in heard]

    def guided(tokens: np.ndarray) -> np.ndarray:
        given = logits(model, "picture", tokens, as_ids("a red cat"), *heard)
        return GUIDANCE * given + (1 - GUIDANCE) * logits(model, "picture", tokens, as_ids(""), *silent)

    numbers, masks = drawn(STEPS, PLACES), np.full((1, PLACES), CODES)
    wanted = list(published.show_o(guided, masks, CODES, numbers, steps=STEPS, temperature=1.5))
    rows = generator.stream("picture", words="a red cat", **speech(model), seed=SEED, steps=STEPS)
    for progress, tokens in zip(rows, wanted, strict=True):
        np.testing.assert_array_equal(progress.latents(), tokens)
        if progress.last:
            assert progress.result().media.shape == (1, *PICTURE.shape)


def test_a_text_of_a_picture_is_llada_s(case: Case) -> None:
    generator, model = case
    (picture, _) = pictures(2)
    with torch.no_grad():
        codes = model.encoders["codes"](to_module(torch.from_numpy(picture[None]), PICTURE))
    heard = [torch.from_numpy(value[None]) for value in speech(model).values()]
    *_, wanted = published.llada(
        lambda tokens: logits(model, "text", tokens, codes, *heard), np.full((1, LENGTH), len(WORDS)), len(WORDS),
        drawn(LENGTH, LENGTH), blocks=2, steps=LENGTH,
    )  # fmt: skip
    made = generator.generate("text", codes=picture, **speech(model), seed=SEED)
    np.testing.assert_array_equal(made.latents, ended(wanted, 1))
    assert made.text == " ".join(WORDS[token] for token in made.latents[0] if token not in (0, 1))


def test_the_transformer_is_stored_once(case: Case) -> None:
    generator, model = case
    modules = [alone(model, "text").denoiser, alone(model, "picture").decoder, *model.encoders.values()]
    weights = 4 * sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert generator.bundle.path(WEIGHTS).stat().st_size < 1.3 * weights


def test_a_captioner_sees_what_the_vit_sees(exported_once: Callable[..., Path]) -> None:
    model, (picture, _) = captioner(), pictures(2)
    with torch.no_grad():
        seen = model.encoders["photo"](to_module(torch.from_numpy(picture[None]), PICTURE))

    @torch.no_grad()
    def captioned(tokens: np.ndarray) -> np.ndarray:
        return model.denoiser(torch.from_numpy(tokens), seen).transpose(1, 2).numpy()

    *_, wanted = published.llada(
        captioned, np.full((1, LENGTH), len(WORDS)), len(WORDS), drawn(LENGTH, LENGTH), blocks=2, steps=LENGTH
    )
    with load(exported_once(captioner), "ort-cpu", threads=1) as generator:
        np.testing.assert_array_equal(generator.generate(photo=picture, seed=SEED).latents, ended(wanted, 1))
        features = generator._opened["text"].session.features("photo", picture[None])
        assert np.allclose(features, seen.numpy(), atol=LIMITS["features"])
