"""Noise that depends on the seed and the sample alone, on every backend."""

import numpy as np
from numpy.typing import NDArray

START = 0  # stream of the noise that a sample starts from; evaluations of a stochastic solver use streams 1, 2, ...


def noise(seed: int, count: int, shape: tuple[int, ...], stream: int = START) -> NDArray[np.float32]:
    """Draw unit normal noise float32 (count, *shape).

    Sample i is drawn from its own Philox generator (Salmon et al. 2011), keyed by the seed and i: the third picture
    of a seed is the same picture whether three or thirty are made.
    """
    samples = np.empty((count, *shape), np.float32)
    for index in range(count):
        sequence = np.random.SeedSequence(seed, spawn_key=(index, stream))
        np.random.Generator(np.random.Philox(sequence)).standard_normal(dtype=np.float32, out=samples[index])
    return samples


def uniform(seed: int, count: int, shape: tuple[int, ...], stream: int) -> NDArray[np.float32]:
    """Draw uniform numbers in [0, 1), float32 (count, *shape), as ``noise`` draws its own."""
    samples = np.empty((count, *shape), np.float32)
    for index in range(count):
        sequence = np.random.SeedSequence(seed, spawn_key=(index, stream))
        np.random.Generator(np.random.Philox(sequence)).random(dtype=np.float32, out=samples[index])
    return samples
