"""A robot's policy small enough to export in seconds, whose inputs have names that graphs and requests use too."""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.runtime.storage.process import Flow
from mmgen.runtime.storage.schema import Condition, Defaults, Media

HORIZON, JOINTS, PATCHES, WIDTH = 6, 8, 2, 5
NULL_IMAGE = np.random.default_rng(0).standard_normal((PATCHES, WIDTH)).astype(np.float32)
NULL_MASK = np.array([1, 0, 0, 0, 0, 0])
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"state": np.float32([1, 2, 3]), "mask": np.ones(HORIZON, np.int64), "image": NULL_IMAGE + 1},
    {"state": np.float32([0, 2, -3]), "mask": np.array([1, 1, 1, 0, 0, 0]), "image": 2 * NULL_IMAGE},
)


class Policy(nn.Module):
    """(x (R, 6, 8), timestep (R,), state (R, 3), mask int64 (R, 6), image (R, 2, 5)) to a velocity (R, 6, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.actions, self.out = nn.Linear(JOINTS, 16), nn.Linear(16, JOINTS)
        self.state, self.image, self.time = nn.Linear(3, 16), nn.Linear(WIDTH, 16), nn.Linear(1, 16)

    def forward(self, x: Tensor, timestep: Tensor, state: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        h = self.actions(x) * mask[..., None].float() + self.time(timestep[:, None])[:, None]
        h = h + self.state(state)[:, None] + self.image(image).mean(1, keepdim=True)
        return self.out(nn.functional.silu(h))


class Normalised(nn.Module):
    """The same three tensors, the state scaled."""

    def forward(self, state: Tensor, mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 0.5 * state, mask + 0, image + 0


def policy(*, null: bool = True, **overrides: Any) -> Model:
    """Build the policy, with the same weights on every call; ``null``: whether it has a null condition."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = Policy().eval()
    model = Model(
        name="policy",
        process=Flow(timestep_scale=1.0),
        latent_shape=(HORIZON, JOINTS),
        denoiser=denoiser,
        conditions=(
            Condition("state", "array", null=0.0 if null else None, shape=(3,)),
            Condition("mask", "array", null=NULL_MASK if null else None, shape=(HORIZON,), dtype="int64"),
            Condition("image", "array", null=NULL_IMAGE if null else None, shape=(PATCHES, WIDTH)),
        ),
        media=Media("array", (HORIZON, JOINTS), "float32"),
        defaults=Defaults("flow-euler", 4),
        decoder=nn.Identity(),
        examples=EXAMPLES,
    )
    return dataclasses.replace(model, **overrides)
