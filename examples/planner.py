"""A model of your own: paths for a robot that must get past an obstacle, left or right of it.

    mmgen-export examples/planner.py:model
    mmgen generate planner.mmgen --condition start_goal='[-1, 0.1, 1, -0.2]' --count 8 -o paths.npy

The function below is all that mmgen needs to know.  It trains its small network
on the spot (a few seconds on a CPU); yours would load weights instead.
"""

import torch
from torch import Tensor, nn

from mmgen.export import Condition, Defaults, Flow, Media, Model

POINTS, RADIUS = 16, 0.4  # positions on a path; the obstacle is a disc around (0, 0)


def demonstrations(count: int) -> tuple[Tensor, Tensor]:
    """Paths (N, 16, 2) and what they were asked for: start and goal (N, 4)."""
    start = torch.stack([torch.full((count,), -1.0), torch.empty(count).uniform_(-0.5, 0.5)], 1)
    goal = torch.stack([torch.full((count,), 1.0), torch.empty(count).uniform_(-0.5, 0.5)], 1)
    s = torch.linspace(0, 1, POINTS)[:, None]
    straight = start[:, None] * (1 - s) + goal[:, None] * s  # (N, 16, 2)
    side = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    bulge = (side * 0.75 - straight[:, POINTS // 2, 1])[:, None] * torch.sin(torch.pi * s[:, 0]) ** 2
    return straight + torch.stack([torch.zeros_like(bulge), bulge], 2), torch.cat([start, goal], 1)


class Planner(nn.Module):
    """(x (R, 16, 2), timestep (R,) in [0, 1], start_goal (R, 4)) to a velocity (R, 16, 2)."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.linspace(1, 12, 16))
        self.first = nn.Linear(2 * POINTS + 32 + 4, width)
        self.rest = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2 * POINTS),
        )  # fmt: skip

    def forward(self, x: Tensor, timestep: Tensor, start_goal: Tensor) -> Tensor:
        angles = timestep[:, None] * self.frequencies  # (R, 16)
        features = torch.cat([x.flatten(1), angles.sin(), angles.cos(), start_goal], 1)
        return self.rest(self.first(features)).unflatten(1, (POINTS, 2))


def train(steps: int = 2000, batch: int = 256) -> Planner:
    """Flow matching (Lipman et al. 2023): predict noise - path at x = (1 - s) path + s noise."""
    planner = Planner()
    optimiser = torch.optim.AdamW(planner.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        path, start_goal = demonstrations(batch)
        noise, s = torch.randn_like(path), torch.rand(batch)
        x = (1 - s[:, None, None]) * path + s[:, None, None] * noise
        loss = (planner(x, s, start_goal) - (noise - path)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return planner


def model() -> Model:
    """Describe the model to mmgen-export."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        planner = train()
    return Model(
        name="planner",
        process=Flow(timestep_scale=1.0),  # the network is told s itself
        latent_shape=(POINTS, 2),
        denoiser=planner,
        conditions=(Condition("start_goal", "array", shape=(4,)),),
        media=Media("array", (POINTS, 2), "float32"),
        defaults=Defaults("flow-euler", steps=10),
        decoder=nn.Identity(),  # the latents are the path
        examples=({"start_goal": demonstrations(1)[1][0].numpy()},),
        licence="Apache-2.0",
        source="examples/planner.py",
    )
