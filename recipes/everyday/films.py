"""Films of one emoji that does one thing, drawn from pictures by bilinear sampling, and the sentences that say so."""

from math import pi

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

FRAMES = 8
RATE = 8.0  # frames a second
MOTIONS = (
    "moving left", "moving right", "moving up", "moving down", "turning left", "turning right",
    "growing", "shrinking", "blinking", "jumping", "shaking", "standing still",
)  # fmt: skip


def held_out(name: int, motion: int) -> bool:
    """Whether a pair is never trained on: one in ten, every name and every motion having some."""
    return (7 * name + 3 * motion + name // 12) % 10 == 0


def draw_pair(names: int, random: np.random.Generator, of_held_out: bool) -> tuple[int, int]:
    """A name and a motion of one of the two halves."""
    while True:
        name, motion = int(random.integers(names)), int(random.integers(len(MOTIONS)))
        if held_out(name, motion) == of_held_out:
            return name, motion


def sentence(name: str, motion: int) -> str:
    return f"{name} {MOTIONS[motion]}"


def _paths(motion: int, random: np.random.Generator) -> NDArray[np.float32]:
    """(FRAMES, 5): x and y of the middle in [-1, 1], y downwards; size as a share; angle in radians; opacity."""
    s = np.linspace(0, 1, FRAMES, dtype=np.float32)
    x, y = (np.full(FRAMES, random.uniform(-0.25, 0.25), np.float32) for _ in range(2))
    size = np.full(FRAMES, random.uniform(0.5, 0.65), np.float32)
    angle, opacity = np.zeros(FRAMES, np.float32), np.ones(FRAMES, np.float32)
    reach = random.uniform(0.35, 0.5)
    match MOTIONS[motion].split():
        case ["moving", way]:
            along = np.float32(reach) * (2 * s - 1) * (-1 if way in ("left", "up") else 1)
            x, y = (along, y) if way in ("left", "right") else (x, along)
        case ["turning", way]:
            angle = np.float32(random.uniform(0.7, 1.0) * pi) * s * (-1 if way == "left" else 1)
        case ["growing"]:
            size = random.uniform(0.3, 0.4) + (random.uniform(0.75, 0.9) - 0.35) * s
        case ["shrinking"]:
            size = random.uniform(0.8, 0.95) - random.uniform(0.45, 0.55) * s
        case ["blinking"]:
            opacity = ((np.arange(FRAMES) // 2 + random.integers(2)) % 2).astype(np.float32)
        case ["jumping"]:
            y = 0.3 - np.float32(reach) * 1.3 * np.abs(np.sin(2 * pi * s))
        case ["shaking"]:
            x = x + np.float32(random.uniform(0.12, 0.2)) * (-1.0) ** np.arange(FRAMES)
        case ["standing", "still"]:
            pass
        case other:
            raise AssertionError(other)
    return np.stack([x, y, size, angle, opacity], 1).astype(np.float32)


def premultiplied(pictures: NDArray[np.uint8]) -> Tensor:
    """RGBA (B, H, W, 4) as floats (B, 4, H, W) in [0, 1], colours multiplied by alpha, as they are laid over others."""
    rgba = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    return torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)


def films(pictures: NDArray[np.uint8], motions: list[int], random: np.random.Generator) -> Tensor:
    """RGBA pictures (B, 64, 64, 4) and what each does, to films (B, FRAMES, 3, 64, 64) in [-1, 1] on white."""
    paths = torch.from_numpy(np.stack([_paths(m, random) for m in motions])).flatten(0, 1)  # (B T, 5)
    x, y, size, angle, opacity = paths.unbind(1)
    cos, sin = angle.cos() / size, angle.sin() / size
    # From a place in the frame to a place in the picture: p = R(-angle) (q - middle) / size.
    rows = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], 1).unflatten(1, (2, 3))
    rgba = premultiplied(pictures).repeat_interleave(FRAMES, 0)
    grid = F.affine_grid(rows, list(rgba.shape), align_corners=False)
    seen = F.grid_sample(rgba, grid, "bilinear", "zeros", align_corners=False) * opacity[:, None, None, None]
    return (2 * (seen[:, :3] + 1 - seen[:, 3:]) - 1).unflatten(0, (-1, FRAMES))
