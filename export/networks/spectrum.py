"""Sound to a spectrum and back without an FFT: windowed frames and a matrix, products that every runtime has.

A frame is ``WINDOW`` samples, ``HOP`` after the last one; its spectrum is its product with sines and cosines under a
Hann window.  Where the way back has magnitudes alone, phases are found by the fast Griffin-Lim algorithm (Perraudin et
al. 2013, alg. 2), unrolled.
"""

from math import pi

import torch
from torch import Tensor, nn

RATE = 16_000
HOP = 200  # 12.5 ms
OVERLAP = 4  # hops in a window
WINDOW = OVERLAP * HOP  # 50 ms
BINS = WINDOW // 2 + 1  # 20 Hz apart
FLOOR = 1e-4  # added to powers before the logarithm: 64 dB below a sine of full scale, and a normal number in half
MOMENTUM = 0.99


def _bases() -> tuple[Tensor, Tensor]:
    """Return the analysis matrix (WINDOW, 2 BINS), real parts first, and the synthesis matrix (2 BINS, WINDOW).

    A sine of full scale has magnitude 16.  Squared Hann windows ``HOP`` apart add up to 1.5, which synthesis divides
    by, so that it undoes analysis.
    """
    n = torch.arange(WINDOW, dtype=torch.float64)
    window = 0.5 - 0.5 * torch.cos(2 * pi * n / WINDOW)
    angle = 2 * pi / WINDOW * torch.outer(n, torch.arange(BINS, dtype=torch.float64))
    waves = torch.cat([angle.cos(), -angle.sin()], 1)  # (WINDOW, 2 BINS)
    scale = 32 / window.sum()
    twice = torch.full((BINS,), 2.0, dtype=torch.float64)
    twice[0] = twice[-1] = 1  # these bins have no conjugate
    weight = (twice / WINDOW).repeat(2) / (1.5 * scale)
    return (window[:, None] * waves * scale).float(), (weight[:, None] * waves.t() * window).float()


class Spectrum(nn.Module):
    """Samples (B, T HOP) to complex spectra (B, T, 2 BINS), real parts first; frame t is around (t + 1/2) HOP."""

    analysis: Tensor
    PADDING = (WINDOW - HOP) // 2

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("analysis", _bases()[0], persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        hops = nn.functional.pad(samples, (self.PADDING, self.PADDING)).unflatten(1, (-1, HOP // 2))
        count = samples.shape[1] // HOP
        # PADDING is an odd number of half hops, so frames are laid out in halves.
        halves = [hops[:, i : i + 2 * count : 2] for i in range(2 * OVERLAP)]
        return torch.cat(halves, 2) @ self.analysis


class Overlap(nn.Module):
    """Complex spectra (B, T, 2 BINS) to samples (B, T HOP): undoes ``Spectrum``, but for the first and last 300."""

    synthesis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("synthesis", _bases()[1], persistent=False)

    def forward(self, spectra: Tensor) -> Tensor:
        frames = (spectra @ self.synthesis).unflatten(2, (OVERLAP, HOP))  # (B, T, OVERLAP, HOP)
        count = frames.shape[1]
        pad = nn.functional.pad
        parts = [pad(frames[:, :, i], (0, 0, i, OVERLAP - 1 - i)) for i in range(OVERLAP)]
        samples = torch.stack(parts).sum(0).flatten(1)  # (B, (T + OVERLAP - 1) HOP)
        return samples[:, Spectrum.PADDING : Spectrum.PADDING + count * HOP]


def log_magnitude(spectra: Tensor) -> Tensor:
    """Return natural logarithms of magnitudes (B, T, BINS), from about -4.6 to 2.8."""
    real, imaginary = spectra.chunk(2, -1)
    return 0.5 * (real.square() + imaginary.square() + FLOOR).log()


class Phases(nn.Module):
    """Logarithms of magnitudes (B, T, BINS) to samples (B, T HOP) that have about these magnitudes."""

    start: Tensor  # (1, T, 2 BINS), unit vectors

    def __init__(self, frames: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.spectrum, self.overlap = Spectrum(), Overlap()
        angle = 2 * pi * torch.rand(1, frames, BINS, generator=torch.Generator().manual_seed(0))
        self.register_buffer("start", torch.cat([angle.cos(), angle.sin()], -1), persistent=False)

    def forward(self, logarithms: Tensor) -> Tensor:
        magnitude = (logarithms.exp().square() - FLOOR).clamp(min=0).sqrt().repeat(1, 1, 2)
        spectra = magnitude * self.start
        last = torch.zeros_like(spectra)
        for _ in range(self.iterations):
            consistent = self.spectrum(self.overlap(spectra))
            ahead = consistent + MOMENTUM * (consistent - last)
            last = consistent
            real, imaginary = ahead.chunk(2, -1)
            spectra = magnitude * ahead / (real.square() + imaginary.square() + FLOOR).sqrt().repeat(1, 1, 2)
        return self.overlap(spectra)
