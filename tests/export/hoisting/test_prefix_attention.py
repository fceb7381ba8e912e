"""Prefix attention: what is given attends to itself alone, so that a step costs what is being made."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmgen.export import Condition, Defaults, Flow, Media, Model, export
from mmgen.runtime import load
from mmgen.runtime.storage.schema import Bundle

WIDTH, MADE, LAYERS = 32, 8, 2


class Block(nn.Module):
    """A layer of two streams: what is given (R, M, WIDTH) and what is made (R, MADE, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = self.query(x) @ keys.transpose(1, 2) / math.sqrt(WIDTH)
        x = x + (scores if mask is None else scores + mask).softmax(-1) @ values
        out: Tensor = x + self.feed(self.norm(x))
        return out


class TwoStreams(nn.Module):
    """What is given goes through the layers by itself; what is made attends to its keys and values and to its own."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.time = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))

    def forward(self, x: Tensor, timestep: Tensor, given: Tensor) -> Tensor:
        made = self.into(x.transpose(1, 2)) + self.time(timestep[:, None] / 1000)[:, None]
        for block in self.blocks:
            keys, values = block.key(given), block.value(given)
            all_keys, all_values = torch.cat([keys, block.key(made)], 1), torch.cat([values, block.value(made)], 1)
            given, made = block.attend(given, keys, values), block.attend(made, all_keys, all_values)
        out: Tensor = self.out(made).transpose(1, 2)
        return out


class OneSequence(TwoStreams):
    """The same function, written as one sequence with a mask: no layer shows that its first part never changes."""

    def forward(self, x: Tensor, timestep: Tensor, given: Tensor) -> Tensor:
        made, known = self.into(x.transpose(1, 2)) + self.time(timestep[:, None] / 1000)[:, None], given.shape[1]
        mask = torch.zeros(known + MADE, known + MADE)
        mask[:known, known:] = -torch.inf
        sequence = torch.cat([given, made], 1)
        for block in self.blocks:
            sequence = block.attend(sequence, block.key(sequence), block.value(sequence), mask)
        out: Tensor = self.out(sequence[:, known:]).transpose(1, 2)
        return out


def exported(kind: type[TwoStreams], given: int, folder: Path) -> Bundle:
    torch.manual_seed(0)
    model = Model(
        name="prefix", process=Flow(), latent_shape=(4, MADE), denoiser=kind(),
        conditions=(Condition("given", "array", shape=(given, WIDTH), null=0.0),),
        media=Media("array", (4, MADE), "float32"), defaults=Defaults("flow-euler", 4), decoder=nn.Identity(),
        examples=({"given": np.random.default_rng(0).standard_normal((given, WIDTH), np.float32)},),
    )  # fmt: skip
    return export(model, folder / f"{kind.__name__}{given}.mmgen", policy="fp32")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("prefix")
    return {
        "short": exported(TwoStreams, 8, folder), "long": exported(TwoStreams, 128, folder),
        "masked": exported(OneSequence, 128, folder),
    }  # fmt: skip


def operations(bundle: Bundle) -> tuple[int, int]:
    """Products of a step for a branch batch of one, before and after hoisting."""
    assert bundle.hoisting is not None
    return bundle.hoisting.operations


def test_a_step_costs_what_is_made_and_a_look_at_what_is_given(bundles: dict[str, Bundle]) -> None:
    (_, short), (before, long) = operations(bundles["short"]), operations(bundles["long"])
    look = LAYERS * 2 * 2 * MADE * WIDTH  # scores and weighted values of one given position
    assert long - short == look * (128 - 8)
    made = LAYERS * MADE * 2 * (3 * WIDTH**2 + 8 * WIDTH**2 + 2 * MADE * WIDTH) + 2 * 2 * MADE * 4 * WIDTH
    assert short == made + 8 * look
    assert before > 8 * long


def test_what_is_given_is_read_once(bundles: dict[str, Bundle]) -> None:
    hoisted = bundles["long"].hoisting
    assert hoisted is not None and sum(hoisted.tensors.values()) >= 2 * LAYERS
    assert "condition" in bundles["long"].graphs


def test_one_sequence_with_a_mask_plays_and_pays_for_all_of_it(bundles: dict[str, Bundle]) -> None:
    assert operations(bundles["masked"])[1] > 8 * operations(bundles["long"])[1]
    given = np.random.default_rng(1).standard_normal((128, WIDTH), np.float32)
    with load(bundles["masked"].folder, "ort-cpu") as one, load(bundles["long"].folder, "ort-cpu") as two:
        assert np.allclose(one.generate(given=given).latents, two.generate(given=given).latents, atol=1e-5)
