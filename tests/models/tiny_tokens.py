"""A generator of tokens small enough to export in seconds: random weights, nothing trained."""

import dataclasses
from typing import Any

import torch
from tiny import Block
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.networks.quantiser import CodesDecoder, CodesEncoder
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Condition, Defaults, Media

GRID, WIDTH, CLASSES, CODES = (6, 6), 32, 10, 48  # the width is that of ``tiny.Block``
PROCESS = Masked(codes=CODES, mask_id=50)  # two numbers between the codes and the mask are nothing


class TokenDenoiser(nn.Module):
    """(tokens int64 (R, 6, 6), context (R, 1, D)) to logits (R, 48, 6, 6) that are spread widely."""

    def __init__(self, grid: tuple[int, ...] = GRID, process: Masked = PROCESS, spread: float = 3.0) -> None:
        super().__init__()
        self.grid, self.spread = grid, spread
        self.embedding = nn.Embedding(process.mask_id + 1, WIDTH)
        self.position = nn.Parameter(torch.randn(1, grid[0] * grid[1], WIDTH))
        self.block = Block()
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, process.codes)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        x = self.embedding(tokens.flatten(1)) + self.position  # (R, N, D)
        logits = self.spread * self.head(self.norm(self.block(x, context[:, 0], context)))
        return logits.transpose(1, 2).unflatten(2, self.grid)


class LabelEmbedding(nn.Module):
    """label int64 (R,) to (context (R, 1, D),)."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, label: Tensor) -> tuple[Tensor]:
        return (self.label(label)[:, None],)


def tiny_token_model(**overrides: Any) -> Model:
    """Build the model, with the same weights on every call.  ``overrides`` replaces fields of the ``Model``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        codebook = torch.randn(CODES, 8)
        decoder = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 12, 1), nn.PixelShuffle(2))
        encoder = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 8, 1))
        model = Model(
            name="tiny-tokens",
            process=PROCESS,
            latent_shape=GRID,
            denoiser=TokenDenoiser().eval(),
            conditions=(Condition("label", "class", null=CLASSES, count=CLASSES),),
            media=Media("image", (12, 12, 3), "uint8", (0.0, 255.0)),
            defaults=Defaults("maskgit", 6, guidance=2.0),
            decoder=CodesDecoder(decoder, codebook).eval(),
            encoder=CodesEncoder(encoder, codebook).eval(),
            condition=LabelEmbedding().eval(),
            conditioning=("context",),
            licence="Apache-2.0",
            source="random weights",
        )
    return dataclasses.replace(model, **overrides)
