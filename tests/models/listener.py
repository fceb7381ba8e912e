"""A model with random weights that hears, watches and feels, and makes a film: every kind of input that is a medium."""

import numpy as np
import torch
from torch import Tensor, nn

from mmgen.export import Condition, Defaults, Flow, Media, Model

SOUND = Media("audio", (400, 1), "float32", rate=1000.0)
SEEN = Media("video", (3, 8, 8, 3), "uint8", rate=10.0)
FELT = Media("series", (6, 2), "float32", rate=50.0, labels=("force", "torque"), units=("N", "N m"))
FILM = Media("video", (4, 16, 16, 3), "uint8", rate=10.0)


class Heard(nn.Module):
    """Sound (B, 1, 400) to (B, 8, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(1, 16, 50, 50)

    def forward(self, sound: Tensor) -> Tensor:
        return self.frames(sound).transpose(1, 2)


class Watched(nn.Module):
    """A film (B, 3, 3, 8, 8), channels first, to (B, 12, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.tubes = nn.Conv3d(3, 16, (1, 4, 4), (1, 4, 4))

    def forward(self, film: Tensor) -> Tensor:
        return self.tubes(film).flatten(2).transpose(1, 2)


class Denoiser(nn.Module):
    """Latents (R, 4, 8) with what was heard and seen (R, ., 16) and felt (R, 6, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.time = nn.Linear(4, 16), nn.Linear(16, 4), nn.Linear(1, 16)
        self.feel = nn.Linear(2, 16)

    def forward(self, x: Tensor, timestep: Tensor, heard: Tensor, seen: Tensor, felt: Tensor) -> Tensor:
        h = self.into(x.transpose(1, 2)) + self.time(timestep[:, None] / 1000)[:, None]  # (R, 8, 16)
        given = torch.cat([heard, seen, self.feel(felt)], 1)
        h = h + (h @ given.transpose(1, 2) / 4).softmax(-1) @ given
        out: Tensor = self.out(h).transpose(1, 2)
        return out


class Film(nn.Module):
    """Latents (B, 4, 8) to a film (B, 3, 4, 16, 16) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(32, 3 * 4 * 4 * 4)

    def forward(self, latents: Tensor) -> Tensor:
        small = torch.tanh(self.out(latents.flatten(1))).reshape(-1, 12, 4, 4)
        return nn.functional.interpolate(small, scale_factor=4.0, mode="nearest").reshape(-1, 3, 4, 16, 16)


def listener() -> Model:
    """Return the model, the same each time."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    return Model(
        name="listener",
        process=Flow(),
        latent_shape=(4, 8),
        denoiser=Denoiser(),
        conditions=(
            Condition("heard", "audio", media=SOUND, null=0.0),
            Condition("seen", "video", media=SEEN, null=0.0),
            Condition("felt", "series", media=FELT, null=0.0),
        ),
        encoders={"heard": Heard(), "seen": Watched()},  # what is felt is taken as it is
        media=FILM,
        defaults=Defaults("flow-euler", 4, guidance=2.0),
        decoder=Film(),
        examples=(
            {
                "heard": np.sin(np.arange(400) / 5)[:, None].astype(np.float32),
                "seen": rng.integers(0, 256, SEEN.shape, np.uint8),
                "felt": rng.standard_normal(FELT.shape).astype(np.float32),
            },
        ),
    )
