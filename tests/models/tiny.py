"""A generator small enough to export in seconds: every kind of part, random weights, nothing trained."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.base.model import Model
from mmgen.runtime.storage.process import Diffusion
from mmgen.runtime.storage.schema import Condition, Defaults, Media

LATENT = (4, 8, 8)
WIDTH, CLASSES, CODES, HINT = 32, 10, 64, 3


class Block(nn.Module):
    """Attention over the tokens, attention to the condition, a two-layer network."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.query, self.key_value, self.cross_out = (
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(4 * WIDTH, WIDTH))
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # (R, N, D) each
        q, k, v = (a.unflatten(-1, (self.heads, -1)).transpose(1, 2) for a in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:  # (R, N, D), (R, D), (R, M, D)
        scale, shift = self.modulation(F.silu(time))[:, None].chunk(2, -1)
        x = x + self.out(self.attend(*self.qkv(self.norms[0](x) * (1 + scale) + shift).chunk(3, -1)))
        x = x + self.cross_out(self.attend(self.query(self.norms[1](x)), *self.key_value(context).chunk(2, -1)))
        return x + self.mlp(self.norms[2](x))


class Denoiser(nn.Module):
    """(x (R, 4, 8, 8), timestep (R,), context (R, 2, D)) -> (R, 4, 8, 8)."""

    frequencies: Tensor

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(LATENT[0], WIDTH, 2, stride=2)
        self.position = nn.Parameter(0.1 * torch.randn(1, LATENT[1] * LATENT[2] // 4, WIDTH))
        self.register_buffer("frequencies", torch.exp(-torch.arange(WIDTH // 2) * 0.6))
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * LATENT[0])

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position  # (R, 16, D)
        angles = timestep[:, None] * self.frequencies
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))  # (R, D)
        for block in self.blocks:
            tokens = block(tokens, time, context)
        h, w = LATENT[1] // 2, LATENT[2] // 2
        out = self.head(self.norm(tokens)).unflatten(1, (h, w)).unflatten(-1, (LATENT[0], 2, 2))  # (R, h, w, C, 2, 2)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(-1, *LATENT)


class ConditionEmbedding(nn.Module):
    """(label int64 (R,), hint float32 (R, 3)) -> (context (R, 2, D),)."""

    def __init__(self) -> None:
        super().__init__()
        self.label, self.hint = nn.Embedding(CLASSES + 1, WIDTH), nn.Linear(HINT, WIDTH)

    def forward(self, label: Tensor, hint: Tensor) -> tuple[Tensor]:
        return (torch.stack([self.label(label), self.hint(hint)], 1),)


class Quantiser(nn.Module):
    """Latents (B, 4, 8, 8) -> (nearest of 64 codes (B, 4, 8, 8), its index (B, 8, 8))."""

    codebook: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.randn(CODES, LATENT[0]))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        z = latents.permute(0, 2, 3, 1)  # (B, 8, 8, 4)
        codes = (self.codebook.square().sum(1) - 2 * (z @ self.codebook.T)).argmin(-1)
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2), codes


def tiny_model(**overrides: Any) -> Model:
    """Build a class- and array-conditioned DiT with a quantiser, a decoder and an encoder for 16 x 16 pictures.

    The weights are the same on every call.  ``overrides`` replaces fields of the ``Model``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model(
            name="tiny",
            process=Diffusion(),
            latent_shape=LATENT,
            denoiser=Denoiser().eval(),
            conditions=(
                Condition("label", "class", null=CLASSES, count=CLASSES),
                Condition("hint", "array", shape=(HINT,)),
            ),
            media=Media("image", (16, 16, 3), "uint8", (0.0, 255.0)),
            defaults=Defaults("ddim", 6, guidance=2.0),
            decoder=nn.Sequential(
                nn.Conv2d(4, 16, 3, padding=1),
                nn.GroupNorm(4, 16),
                nn.SiLU(),
                nn.Conv2d(16, 12, 3, padding=1),
                nn.PixelShuffle(2),
            ).eval(),
            quantiser=Quantiser().eval(),
            encoder=nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, 4, 1)).eval(),
            condition=ConditionEmbedding().eval(),
            conditioning=("context",),
            licence="Apache-2.0",
            source="random weights",
        )
    return dataclasses.replace(model, **overrides)
