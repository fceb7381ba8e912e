"""Autoencoders of sound, film and series: N places in a medium, each with a few codes of one codebook.

What ``vqvae`` is to pictures.  A place's vector is cut into groups and each group is quantised (a product code, Jegou
et al. 2011), so that few places say much: a transformer over them has one token a place.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.networks.quantiser import nearest_codes
from mmgen.export.networks.spectrum import BINS, HOP, Phases, Spectrum, log_magnitude
from mmgen.export.networks.vqvae import ResBlock


@dataclass(frozen=True)
class GroupedVQVAEConfig:
    """Shape of an autoencoder of sound, film or series."""

    places: int
    groups: int  # codes of a place
    codes: int = 1024  # entries of the codebook
    code_dim: int = 8
    channels: int = 128
    encoder_blocks: int = 2  # residual blocks at each resolution
    decoder_blocks: int = 2


class GroupedVQVAE(nn.Module):
    """Autoencoder with a learned codebook; latents float (B, D, N, G), codes int64 (B, N, G) in [0, K).

    ``encoder`` takes what ``prepared`` makes of a medium; ``decoder`` makes the same, and ``finished`` a medium of it.
    """

    codebook: Tensor  # (K, D)

    def __init__(self, config: GroupedVQVAEConfig, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("codebook", torch.randn(config.codes, config.code_dim))

    def prepared(self, media: Tensor) -> Tensor:
        """Prepare a medium for the encoder."""
        return media

    def encode(self, prepared: Tensor) -> Tensor:
        """Encode as latents (B, D, N, G), before quantisation."""
        config = self.config
        flat = self.encoder(prepared).flatten(2)  # (B, G D, N)
        return flat.unflatten(1, (config.groups, config.code_dim)).permute(0, 2, 3, 1)

    def nearest_codes(self, latents: Tensor) -> Tensor:
        """Find the index (B, N, G) of the nearest codebook entry, the first one on ties."""
        return nearest_codes(latents, self.codebook)

    def lookup(self, codes: Tensor) -> Tensor:
        """Look up the latents (B, D, N, G) of codes (B, N, G)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode quantised latents to what ``prepared`` makes."""
        return self.decoder(latents.permute(0, 3, 1, 2).flatten(1, 2))  # (B, G D, N)

    def finished(self, decoded: Tensor) -> Tensor:
        """Make a medium of what ``prepared`` makes."""
        return decoded


class Block1d(nn.Module):
    """norm, SiLU, 3, norm, SiLU, 3, added to the input; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv1d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv1d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, T)
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Halve(nn.Module):
    """(B, C, T) to (B, C, T / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.unflatten(2, (-1, 2)).transpose(2, 3).flatten(1, 2))


class Double(nn.Module):
    """(B, C, T) to (B, C, 2 T)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)


def encoder_1d(features: int, config: GroupedVQVAEConfig) -> nn.Sequential:
    """(B, features, 4 N) to (B, G D, N)."""
    c = config.channels
    return nn.Sequential(
        nn.Conv1d(features, c, 3, padding=1),
        *(Block1d(c) for _ in range(config.encoder_blocks)),
        Halve(c),
        *(Block1d(c) for _ in range(config.encoder_blocks)),
        Halve(c),
        *(Block1d(c) for _ in range(config.encoder_blocks)),
        nn.GroupNorm(8, c),
        nn.SiLU(),
        nn.Conv1d(c, config.groups * config.code_dim, 1),
    )


def decoder_1d(features: int, config: GroupedVQVAEConfig) -> nn.Sequential:
    """(B, G D, N) to (B, features, 4 N)."""
    c = config.channels
    return nn.Sequential(
        nn.Conv1d(config.groups * config.code_dim, c, 3, padding=1),
        *(Block1d(c) for _ in range(config.decoder_blocks)),
        Double(c),
        *(Block1d(c) for _ in range(config.decoder_blocks)),
        Double(c),
        *(Block1d(c) for _ in range(config.decoder_blocks)),
        nn.GroupNorm(8, c),
        nn.SiLU(),
        nn.Conv1d(c, features, 3, padding=1),
    )


class SeriesVQVAE(GroupedVQVAE):
    """Series (B, 4 N, C) in about [-1, 1]."""

    def __init__(self, config: GroupedVQVAEConfig, channels: int) -> None:
        super().__init__(config, encoder_1d(channels, config), decoder_1d(channels, config))

    def prepared(self, media: Tensor) -> Tensor:
        """Transpose to (B, C, 4 N)."""
        return media.transpose(1, 2)

    def finished(self, decoded: Tensor) -> Tensor:
        """Undo ``prepared``."""
        return decoded.transpose(1, 2)


class SoundVQVAE(GroupedVQVAE):
    """Sound (B, 4 N HOP) in [-1, 1] at ``spectrum.RATE``, through logarithms of its magnitudes (B, BINS, 4 N)."""

    def __init__(self, config: GroupedVQVAEConfig, iterations: int = 8) -> None:
        super().__init__(config, encoder_1d(BINS, config), decoder_1d(BINS, config))
        self.spectrum = Spectrum()
        self.phases = Phases(4 * config.places, iterations)
        self.samples = 4 * config.places * HOP

    def prepared(self, media: Tensor) -> Tensor:
        """Compute log magnitudes (B, BINS, 4 N)."""
        return log_magnitude(self.spectrum(media)).transpose(1, 2)

    def finished(self, decoded: Tensor) -> Tensor:
        """Find samples that have these magnitudes."""
        return self.phases(decoded.transpose(1, 2)).clamp(-1, 1)


class FilmVQVAE(GroupedVQVAE):
    """Films (B, T, 3, 64, 64) in [-1, 1]: all frames at once as channels, 8 x 8 places.

    Every place sees all frames, so that what moves is said by few codes.  Pixels are folded 4 x 4 into channels at both
    ends, so that no convolution runs at full resolution.
    """

    FOLD = 4

    def __init__(self, config: GroupedVQVAEConfig, frames: int) -> None:
        c, out = config.channels, config.groups * config.code_dim
        folded = frames * 3 * self.FOLD**2
        encoder = nn.Sequential(
            nn.PixelUnshuffle(self.FOLD),
            nn.Conv2d(folded, c, 3, padding=1),
            *(ResBlock(c) for _ in range(config.encoder_blocks)),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * c, 2 * c, 1),
            *(ResBlock(2 * c) for _ in range(config.encoder_blocks)),
            nn.GroupNorm(8, 2 * c),
            nn.SiLU(),
            nn.Conv2d(2 * c, out, 1),
        )
        decoder = nn.Sequential(
            nn.Conv2d(out, 2 * c, 3, padding=1),
            *(ResBlock(2 * c) for _ in range(config.decoder_blocks)),
            nn.Conv2d(2 * c, 4 * c, 1),
            nn.PixelShuffle(2),
            *(ResBlock(c) for _ in range(config.decoder_blocks)),
            nn.GroupNorm(8, c),
            nn.SiLU(),
            nn.Conv2d(c, folded, 3, padding=1),
            nn.PixelShuffle(self.FOLD),
        )
        super().__init__(config, encoder, decoder)
        self.side = int(config.places**0.5)
        self.frames = frames

    def prepared(self, media: Tensor) -> Tensor:
        """Lay frames out as channels, (B, 3 T, 64, 64)."""
        return media.flatten(1, 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode quantised latents to (B, 3 T, 64, 64)."""
        grid = latents.permute(0, 3, 1, 2).flatten(1, 2)  # (B, G D, N)
        return self.decoder(grid.unflatten(2, (self.side, self.side)))

    def finished(self, decoded: Tensor) -> Tensor:
        """Undo ``prepared``."""
        return decoded.unflatten(1, (self.frames, 3)).clamp(-1, 1)


def autoencoder_of(medium: str, config: GroupedVQVAEConfig, frames: int, channels: int) -> GroupedVQVAE:
    """Build the autoencoder of sound, of films of so many frames, or of series of so many channels."""
    match medium:
        case "sound":
            return SoundVQVAE(config)
        case "film":
            return FilmVQVAE(config, frames)
        case "series":
            return SeriesVQVAE(config, channels)
        case other:
            raise ValueError(other)
