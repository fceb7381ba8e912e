"""Spectra by products are those of scipy and numpy, and sound comes back from them."""

import numpy as np
import scipy.signal
import torch
from tolerances import LIMITS

from mmgen.export.networks.senses import BANDS, mel_filters
from mmgen.export.networks.spectrum import BINS, HOP, RATE, WINDOW, Overlap, Phases, Spectrum, log_magnitude

FRAMES = 24
SOUND = np.random.default_rng(0).standard_normal((2, FRAMES * HOP)).astype(np.float32) / 10


def distance(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_a_spectrum_is_numpys_of_windowed_frames() -> None:
    padded = np.pad(SOUND, ((0, 0), (300, 300)))
    frames = np.stack([padded[:, t * HOP : t * HOP + WINDOW] for t in range(FRAMES)], 1)
    window = scipy.signal.get_window("hann", WINDOW)
    want = np.fft.rfft(frames * window) * 32 / window.sum()
    real, imaginary = Spectrum()(torch.from_numpy(SOUND)).chunk(2, -1)
    assert real.shape == (2, FRAMES, BINS)
    assert distance(real.numpy() + 1j * imaginary.numpy(), want) < LIMITS["spectrum"]


def test_overlapping_frames_undo_it() -> None:
    got = Overlap()(Spectrum()(torch.from_numpy(SOUND))).numpy()
    inside = slice(WINDOW - HOP, -(WINDOW - HOP))  # of the ends some windows are missing
    assert distance(got[:, inside], SOUND[:, inside]) < LIMITS["spectrum"]


def test_a_sine_of_full_scale_has_magnitude_16() -> None:
    sine = np.sin(2 * np.pi * 1000 * np.arange(FRAMES * HOP) / RATE).astype(np.float32)
    logarithms = log_magnitude(Spectrum()(torch.from_numpy(sine[None])))
    assert int(logarithms[0, 10].argmax()) == 1000 * WINDOW // RATE
    np.testing.assert_allclose(logarithms[0, 10].max().exp(), 16, rtol=1e-3)


def test_phases_are_found_for_magnitudes() -> None:
    """Nearer to the magnitudes with every iteration; silence stays silence."""
    want = log_magnitude(Spectrum()(torch.from_numpy(SOUND)))
    errors = [
        (log_magnitude(Spectrum()(Phases(FRAMES, n)(want))) - want)[:, 3:-3].abs().mean().item() for n in (0, 4, 32)
    ]
    assert errors[0] > 1.5 * errors[1] > 1.5 * errors[2]
    silence = log_magnitude(torch.zeros(1, FRAMES, 2 * BINS))
    assert Phases(FRAMES, 4)(silence).abs().max() < 1e-3


def test_mel_filters_cover_every_frequency_between_the_outermost() -> None:
    """Neighbouring triangles cross at one half, so that they add up to one; wider ones are higher up."""
    filters = mel_filters(BANDS, BINS, RATE)
    assert filters.shape == (BINS, BANDS)
    middles = (filters * torch.arange(BINS)[:, None]).sum(0) / filters.sum(0)
    assert bool((middles.diff() > 0).all())
    between = filters[int(middles[0]) + 1 : int(middles[-1])]
    torch.testing.assert_close(between.sum(1), torch.ones(len(between)))
