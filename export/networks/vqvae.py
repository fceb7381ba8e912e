"""The VQ-VAE of mmgen checkpoints: pictures to a grid of codes and back.

A VQ-VAE (van den Oord et al. 2017) with a codebook learned by moving averages
(their appendix A.1) and revival of unused codes.  Pixels are folded
2x2 into channels at both ends, so that no convolution runs at full resolution:
on a small device that is where the time of a decoder goes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.networks.quantiser import nearest_codes


@dataclass(frozen=True)
class VQVAEConfig:
    """Shape of the autoencoder; ``latents_mean`` and ``latents_std`` are filled in by training."""

    sample_size: int = 64  # pixels, height and width of a picture
    channels: tuple[int, int] = (64, 96)  # features at 1/2 and at 1/4 of the resolution
    encoder_blocks: int = 2  # residual blocks at each resolution
    decoder_blocks: int = 3
    codes: int = 1024  # entries of the codebook
    code_dim: int = 8  # channels of a code
    latents_mean: tuple[float, ...] = ()  # per channel, over the training set
    latents_std: tuple[float, ...] = ()


class ResBlock(nn.Module):
    """norm, SiLU, 3x3, norm, SiLU, 3x3, added to the input; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


def _encoder(config: VQVAEConfig) -> nn.Sequential:
    fine, coarse = config.channels
    return nn.Sequential(
        nn.PixelUnshuffle(2),  # (B, 12, H/2, W/2)
        nn.Conv2d(12, fine, 3, padding=1),
        *(ResBlock(fine) for _ in range(config.encoder_blocks)),
        nn.Conv2d(fine, coarse, 3, stride=2, padding=1),  # (B, C, H/4, W/4)
        *(ResBlock(coarse) for _ in range(config.encoder_blocks)),
        nn.GroupNorm(8, coarse),
        nn.SiLU(),
        nn.Conv2d(coarse, config.code_dim, 1),  # (B, D, H/4, W/4)
    )


def _decoder(config: VQVAEConfig) -> nn.Sequential:
    fine, coarse = config.channels
    return nn.Sequential(
        nn.Conv2d(config.code_dim, coarse, 3, padding=1),
        *(ResBlock(coarse) for _ in range(config.decoder_blocks)),
        nn.Conv2d(coarse, 4 * fine, 1),
        nn.PixelShuffle(2),  # (B, C, H/2, W/2)
        *(ResBlock(fine) for _ in range(config.decoder_blocks)),
        nn.GroupNorm(8, fine),
        nn.SiLU(),
        nn.Conv2d(fine, 12, 3, padding=1),
        nn.PixelShuffle(2),  # (B, 3, H, W)
    )


class VQVAE(nn.Module):
    """Autoencoder with a learned codebook.

    Pictures are float (B, 3, H, W) in [-1, 1]; latents float (B, D, H/4, W/4);
    codes int64 (B, H/4, W/4) in [0, K).
    """

    codebook: Tensor  # (K, D)
    usage: Tensor  # (K,) moving average of how often a code is taken in a batch
    code_sum: Tensor  # (K, D) moving average of the vectors that took it

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _encoder(config)
        self.decoder = _decoder(config)
        self.register_buffer("codebook", torch.randn(config.codes, config.code_dim))
        self.register_buffer("usage", torch.ones(config.codes), persistent=False)
        self.register_buffer("code_sum", self.codebook.clone(), persistent=False)

    def encode(self, pictures: Tensor) -> Tensor:
        """Encode pictures as latents (B, D, H/4, W/4), before quantisation."""
        return self.encoder(pictures)

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Find the index (B, H/4, W/4) of the nearest codebook entry, the first one on ties."""
        return nearest_codes(latents, self.codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        """Look up the latents (B, D, H/4, W/4) of codes (B, H/4, W/4)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode quantised latents to pictures (B, 3, H, W), not clamped."""
        return self.decoder(latents)
