"""Prompt accuracy: is a generated picture nearest to the emoji that was asked for?"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from data import Emoji
from numpy.typing import NDArray
from torch import Tensor
from train_vqvae import pictures

from mmgen.export.networks.vqvae import VQVAE

Generate = Callable[[list[str], int], NDArray[np.uint8]]  # prompts, seed -> pictures (B, 64, 64, 3)


@dataclass(frozen=True)
class Accuracy:
    top1: float
    top5: float
    captions: int
    missed: tuple[tuple[str, str], ...]  # what was asked for, what was nearest


def as_floats(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def features(model: VQVAE, images: Tensor) -> Tensor:
    """The encoder's output before quantisation, one row a picture."""
    return torch.cat([model.encode(batch).flatten(1) for batch in images.split(64)])


def captions(emoji: list[Emoji], count: int) -> list[int]:
    """Which emoji are asked for: spread evenly over the base emoji, in Unicode's order."""
    base = [i for i, e in enumerate(emoji) if e.base == e.unified]
    return [base[i * len(base) // count] for i in range(count)]


def measure(model: VQVAE, emoji: list[Emoji], generate: Generate, count: int = 200, batch: int = 8) -> Accuracy:
    """Ask for ``count`` names and look each picture up among all emoji, skin-tone variants included.

    Emoji whose pictures are the same to the pixel (some flags) count as one.
    """
    gallery = features(model, pictures(emoji))
    first_like: dict[bytes, int] = {}
    same = [first_like.setdefault(e.picture.tobytes(), i) for i, e in enumerate(emoji)]
    asked = captions(emoji, count)
    top1 = top5 = 0
    missed = []
    for seed, start in enumerate(range(0, count, batch)):
        chosen = asked[start : start + batch]
        made = features(model, as_floats(generate([emoji[i].name for i in chosen], seed)))
        order = torch.cdist(made, gallery).argsort(1)[:, :32].tolist()
        for wanted, row in zip(chosen, order, strict=True):
            ranked = list(dict.fromkeys(same[i] for i in row))
            top1 += ranked[0] == same[wanted]
            top5 += same[wanted] in ranked[:5]
            if ranked[0] != same[wanted]:
                missed.append((emoji[wanted].name, emoji[ranked[0]].name))
    return Accuracy(top1 / count, top5 / count, count, tuple(missed))
