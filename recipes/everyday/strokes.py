"""Strokes as a pen or a hand draws them: (64, 2) points of a curve, and the words for it.

A writer is a seed: it has a slant, a height, a way to start and a tremor of its own.  Even numbers train, odd ones
measure.
"""

from collections.abc import Callable
from math import pi

import numpy as np
from numpy.typing import NDArray

POINTS = 64
WRITERS = 100_000

Curve = NDArray[np.float64]  # (n, 2), x to the right, y upwards
T = np.linspace(0, 1, 256)


def _through(*corners: tuple[float, float]) -> Curve:
    """Straight lines from corner to corner."""
    points = np.array(corners, float)
    at = np.linspace(0, 1, len(points))
    return np.stack([np.interp(T, at, points[:, i]) for i in range(2)], 1)


def _round(x: Callable[[Curve], Curve], y: Callable[[Curve], Curve]) -> Curve:
    return np.stack([x(T), y(T)], 1)


def _polygon(corners: int, skip: int = 1) -> Curve:
    turns = pi / 2 - 2 * pi * skip * np.arange(corners + 1) / corners
    return _through(*zip(np.cos(turns), np.sin(turns), strict=True))


SHAPES: dict[str, Curve] = {
    "line to the right": _through((-1, 0), (1, 0)),
    "line to the left": _through((1, 0), (-1, 0)),
    "line up": _through((0, -1), (0, 1)),
    "line down": _through((0, 1), (0, -1)),
    "circle clockwise": _round(lambda t: np.sin(2 * pi * t), lambda t: np.cos(2 * pi * t)),
    "circle anticlockwise": _round(lambda t: -np.sin(2 * pi * t), lambda t: np.cos(2 * pi * t)),
    "square": _through((-1, 1), (1, 1), (1, -1), (-1, -1), (-1, 1)),
    "triangle": _polygon(3),
    "pentagon": _polygon(5),
    "star": _polygon(5, 2),
    "zigzag": _through((-1, -1), (-0.5, 1), (0, -1), (0.5, 1), (1, -1)),
    "wave": _round(lambda t: 2 * t - 1, lambda t: 0.6 * np.sin(4 * pi * t)),
    "spiral": _round(lambda t: t * np.sin(6 * pi * t), lambda t: t * np.cos(6 * pi * t)),
    "eight": _round(lambda t: 0.6 * np.sin(4 * pi * t), lambda t: np.cos(2 * pi * t)),
    "infinity": _round(lambda t: np.cos(2 * pi * t), lambda t: 0.5 * np.sin(4 * pi * t)),
    "heart": _round(
        lambda t: np.sin(2 * pi * t) ** 3,
        lambda t: (13 * np.cos(2 * pi * t) - 5 * np.cos(4 * pi * t) - 2 * np.cos(6 * pi * t)) / 16,
    ),
    "tick": _through((-1, 0), (-0.4, -1), (-0.07, -0.33), (0.27, 0.33), (1, 1)),
    "hook": _through((-0.5, 1), (-0.5, -1), (0, -1), (0.5, -1)),
    "arch": _round(lambda t: -np.cos(pi * t), lambda t: np.sin(pi * t) * 1.5 - 0.75),
    "bowl": _round(lambda t: -np.cos(pi * t), lambda t: 0.75 - np.sin(pi * t) * 1.5),
    "loop": _round(lambda t: 2 * t - 1 - 0.9 * np.sin(2 * pi * t), lambda t: -np.cos(2 * pi * t)),
    "stairs": _through((-1, -1), (-1, -0.33), (-0.33, -0.33), (-0.33, 0.33), (0.33, 0.33), (0.33, 1), (1, 1)),
    "arrow": _through((-1, 0), (0, 0), (1, 0), (0.5, 0.5), (1, 0), (0.5, -0.5)),
    "letter s": _round(lambda t: 0.6 * np.sin(2 * pi * t + pi / 4), lambda t: np.cos(pi * t)),
}
SIZES = {"small": 0.35, "large": 0.8}
WORDS = tuple(f"{size} {shape}" for size in SIZES for shape in SHAPES)


def stroke(kind: int, writer: int) -> NDArray[np.float32]:
    """(64, 2) in about [-1, 1], evenly spaced in time, of what ``WORDS[kind]`` says."""
    random = np.random.default_rng(writer)
    size, shape = WORDS[kind].split(" ", 1)
    curve = SHAPES[shape]
    # A pen is slower in some places than in others: time goes t + a sin(2 pi t) / 2 pi.
    uneven = T[:, None] + random.uniform(-0.5, 0.5) * np.sin(2 * pi * T[:, None]) / (2 * pi)
    at = np.interp(np.linspace(0, 1, POINTS), T, uneven[:, 0])
    points = np.stack([np.interp(at, T, curve[:, i]) for i in range(2)], 1)
    angle, slant, narrow = random.normal(0, 0.12), random.normal(0, 0.15), random.uniform(0.8, 1.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = points @ np.array([[narrow, 0], [slant, 1]]) @ turn.T
    tremor = np.cumsum(random.normal(0, 1, (POINTS, 2)), 0)
    tremor -= np.linspace(0, 1, POINTS)[:, None] * tremor[-1]
    points = points * SIZES[size] * random.uniform(0.85, 1.15) + random.uniform(0, 0.004) * tremor
    return (points + random.uniform(-0.15, 0.15, 2)).astype(np.float32)


def draw_writer(random: np.random.Generator, of_held_out: bool) -> int:
    return 2 * int(random.integers(WRITERS)) + of_held_out
