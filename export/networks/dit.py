"""The text-conditional diffusion transformer of mmgen checkpoints.

DiT blocks with adaLN-zero (Peebles & Xie 2023), cross-attention to a small
text encoder learned with it (as in PixArt-alpha, Chen et al. 2023), and a
low-rank projection for each block's modulation.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class TextDiTConfig:
    """Shape of the network."""

    latent_shape: tuple[int, int, int] = (8, 16, 16)  # channels, height, width
    patch: int = 2
    width: int = 256
    layers: int = 6
    heads: int = 4
    mlp_ratio: int = 4
    modulation_rank: int = 64
    vocabulary: int = 4096
    text_length: int = 24  # tokens, padded
    text_width: int = 192
    text_layers: int = 2
    text_heads: int = 3


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Compute multi-head attention over (B, N, D) with keys and values (B, M, D).

    Written out: for this few tokens it trains faster on a CPU than the fused kernel, whose backward pass is slow there.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, N, D/H)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, H, N, M)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Return sinusoids (B, width) of timesteps (B,), wavelengths 2 pi to 20000 pi (Vaswani et al. 2017, sec. 3.5)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10_000) / half))
    angle = timestep.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


def unpatched(x: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Turn tokens (B, rows columns, C p p) of a grid (rows, columns) into (B, C, rows p, columns p)."""
    x = x.unflatten(1, grid).unflatten(3, (-1, patch, patch))  # (B, rows, columns, C, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class Mlp(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(nn.Linear(width, ratio * width), nn.GELU("tanh"), nn.Linear(ratio * width, width))


class TextBlock(nn.Module):
    """Pre-norm transformer block; padding is attended to like any token, so no mask can be empty."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D)
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(attention(q, k, v, self.heads))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """Tokens int64 (B, T), the first a [CLS], to one vector a token (B, T, D)."""

    def __init__(self, config: TextDiTConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocabulary, config.text_width)
        self.position = nn.Parameter(0.02 * torch.randn(config.text_length, config.text_width))
        self.blocks = nn.ModuleList(TextBlock(config.text_width, config.text_heads) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(config.text_width)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Block(nn.Module):
    """Self-attention and MLP, modulated and gated; cross-attention to the text between them."""

    def __init__(self, config: TextDiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(config.text_width, 2 * width)
        self.cross_proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = Mlp(width, config.mlp_ratio)
        down = nn.Linear(width, config.modulation_rank, bias=False)
        up = nn.Linear(config.modulation_rank, 6 * width)
        self.modulation = nn.Sequential(down, up)
        for parameter in (self.cross_proj.weight, up.weight, up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c: Tensor, context: Tensor) -> Tensor:  # (B, N, D), (B, D), (B, T, C)
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, -1)
        h = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(h).chunk(3, -1)
        x = x + gate1 * self.proj(attention(q, k, v, self.heads))
        k, v = self.cross_kv(context).chunk(2, -1)
        x = x + self.cross_proj(attention(self.cross_q(self.cross_norm(x)), k, v, self.heads))
        h = self.norm2(x) * (1 + scale2) + shift2
        return x + gate2 * self.mlp(h)


class TextDiT(nn.Module):
    """Denoiser: latents (B, C, H, W), timestep (B,), text vectors (B, T, D) to an output of the latents' shape."""

    def __init__(self, config: TextDiTConfig) -> None:
        super().__init__()
        self.config = config
        channels, height, width = config.latent_shape
        self.grid = (height // config.patch, width // config.patch)
        tokens, features = self.grid[0] * self.grid[1], channels * config.patch**2
        self.text = TextEncoder(config)
        self.patch_in = nn.Linear(features, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, config.width))
        self.time = nn.Sequential(
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.pooled = nn.Linear(config.text_width, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.patch_out = nn.Linear(config.width, features)
        for layer in (self.modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        rows, columns = self.grid
        p = self.config.patch
        h = x.unflatten(3, (columns, p)).unflatten(2, (rows, p))  # (B, C, rows, p, columns, p)
        h = h.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, N, C p p)
        h = self.patch_in(h) + self.position
        c = self.time(timestep_embedding(timestep, self.config.width)) + self.pooled(context[:, 0])
        c = F.silu(c)
        for block in self.blocks:
            h = block(h, c, context)
        shift, scale = self.modulation(c)[:, None].chunk(2, -1)
        return unpatched(self.patch_out(self.norm(h) * (1 + scale) + shift), self.grid, p)
