"""What turns a medium into a few vectors for the transformer: pictures, films, sound and series to (B, n, width).

Each ends with a normalisation, so that no vector is zero: zeros mean that a medium is absent.
"""

from itertools import pairwise
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.networks.grouped_vqvae import Block1d, Halve
from mmgen.export.networks.spectrum import BINS, FLOOR, RATE, Spectrum
from mmgen.export.networks.vqvae import ResBlock

SEEN = (0, 2, 5, 7)  # of a film's eight frames: enough to tell moving, turning, blinking and shaking apart
BANDS = 64  # of the mel scale


class PictureSense(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] to 4 x 4 vectors (B, 16, D)."""

    def __init__(self, width: int, channels: tuple[int, int] = (96, 192)) -> None:
        super().__init__()
        fine, coarse = channels
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(4),  # (B, 48, 16, 16)
            nn.Conv2d(48, fine, 3, padding=1),
            *(ResBlock(fine) for _ in range(2)),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * fine, coarse, 1),  # (B, C, 8, 8)
            *(ResBlock(coarse) for _ in range(2)),
            nn.GroupNorm(8, coarse),
            nn.SiLU(),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4 * coarse, width, 1),  # (B, D, 4, 4)
        )
        self.norm = nn.LayerNorm(width)

    def grid(self, pictures: Tensor) -> Tensor:
        """See a grid of vectors (B, D, 4, 4)."""
        return self.layers(pictures)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.norm(self.grid(pictures).flatten(2).transpose(1, 2))


class FilmSense(nn.Module):
    """Films (B, 8, 3, 64, 64) in [-1, 1] to four vectors for each frame that is looked at, (B, 16, D).

    A frame is seen as a picture is, by the same ``PictureSense``: what is known of pictures is known of films.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.Conv2d(4 * width, width, 1)
        self.norm = nn.LayerNorm(width)

    def forward(self, films: Tensor, picture: PictureSense) -> Tensor:
        frames = torch.stack([films[:, t] for t in SEEN], 1)
        grid = picture.grid(frames.flatten(0, 1))  # (B T, D, 4, 4)
        few = self.pool(F.pixel_unshuffle(grid, 2)).flatten(2).transpose(1, 2)  # (B T, 4, D)
        return self.norm(few).unflatten(0, (-1, len(SEEN))).flatten(1, 2)


def mel_filters(bands: int, bins: int, rate: int) -> Tensor:
    """Return overlapping triangles (bins, bands), evenly spaced in 2595 log10(1 + f / 700) (O'Shaughnessy 1987)."""
    nyquist = torch.tensor(rate / 2, dtype=torch.float64)
    mels = torch.linspace(0, float(2595 * torch.log10(1 + nyquist / 700)), bands + 2, dtype=torch.float64)
    corners = 700 * (10 ** (mels / 2595) - 1)
    f = torch.linspace(0, float(nyquist), bins, dtype=torch.float64)[:, None]
    up = (f - corners[:-2]) / corners.diff()[:-1]
    down = (corners[2:] - f) / corners.diff()[1:]
    return torch.minimum(up, down).clamp(min=0).float()


class SoundSense(nn.Module):
    """Sound (B, T 200) in [-1, 1] at 16 kHz to a vector for every 50 ms, (B, T / 4, D)."""

    filters: Tensor

    def __init__(self, width: int, channels: int = 192) -> None:
        super().__init__()
        self.spectrum = Spectrum()
        self.register_buffer("filters", mel_filters(BANDS, BINS, RATE), persistent=False)
        self.layers = nn.Sequential(
            nn.Conv1d(BANDS, channels, 5, padding=2),
            Block1d(channels),
            Halve(channels),
            Block1d(channels),
            Block1d(channels),
            Halve(channels),
            Block1d(channels),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv1d(channels, width, 1),
        )
        self.norm = nn.LayerNorm(width)

    def bands(self, sound: Tensor) -> Tensor:
        """Hear logarithms of the power in mel bands (B, BANDS, T), less their mean over the sound."""
        real, imaginary = self.spectrum(sound).chunk(2, -1)
        bands = ((real.square() + imaginary.square()) @ self.filters + FLOOR).log() - log(FLOOR)  # of silence: 0, so
        # that its mean, which is subtracted, leaves no rounding errors for what normalises next
        return (bands - bands.mean((1, 2), keepdim=True)).transpose(1, 2)

    def forward(self, sound: Tensor) -> Tensor:
        return self.norm(self.layers(self.bands(sound)).transpose(1, 2))


class SeriesSense(nn.Module):
    """Series (B, T, C) to a vector for every four samples, (B, T / 4, D)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = (4 * channels, width, width)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.GELU("tanh")) for a, b in pairwise(sizes)))
        self.norm = nn.LayerNorm(width)

    def forward(self, series: Tensor) -> Tensor:
        return self.norm(self.layers(series.unflatten(1, (-1, 4)).flatten(2)))
