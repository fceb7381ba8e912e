"""A robot's action head in the shape of GR00T N1.5's, random weights: flow matching over a chunk of actions.

Tokens are the robot's joints, learned future tokens and the noisy actions; every block is modulated by the timestep,
attends to what a vision-language model made of picture and instruction, and ends in a feed-forward network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.base.model import Model
from mmgen.runtime.storage.process import Flow
from mmgen.runtime.storage.schema import Condition, Defaults, Media


@dataclass(frozen=True)
class HeadConfig:
    """Sizes; the defaults are small, ``TRUE_SIZE`` has 550 M parameters."""

    layers: int = 3
    heads: int = 4
    head_width: int = 16
    context: tuple[int, int] = (12, 64)  # tokens, width
    joints: int = 6
    future: int = 4  # learned tokens
    actions: tuple[int, int] = (8, 6)  # horizon, width

    @property
    def width(self) -> int:
        return self.heads * self.head_width


TRUE_SIZE = HeadConfig(16, 32, 48, (400, 2048), 64, 32, (16, 32))


def sinusoids(timestep: Tensor, width: int) -> Tensor:
    """(R,) to (R, width)."""
    half = width // 2
    frequency = torch.exp(-torch.arange(half) * (torch.log(torch.tensor(10_000.0)) / half))
    angle = timestep[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class Block(nn.Module):
    """Adaptive norm by the timestep, attention to the context, feed-forward."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(config.context[1], width), nn.Linear(config.context[1], width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:  # (R, N, D), (R, D), (R, M, C)
        scale, shift = self.modulation(F.silu(time)).chunk(2, -1)
        h = self.norm1(x) * (1 + scale[:, None]) + shift[:, None]
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(h), self.key(context), self.value(context))
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ActionHead(nn.Module):
    """(actions (R, T, A), timestep (R,), context (R, M, C), joints (R, S)) to a velocity (R, T, A)."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        width, (horizon, actions) = config.width, config.actions
        self.width, self.horizon = width, horizon
        self.context_norm = nn.LayerNorm(config.context[1])
        self.joints = nn.Sequential(nn.Linear(config.joints, width), nn.ReLU(), nn.Linear(width, width))
        self.future = nn.Parameter(0.02 * torch.randn(1, config.future, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, horizon, width))
        self.action_in, self.action_time = nn.Linear(actions, width), nn.Linear(2 * width, width)
        self.action_out = nn.Linear(width, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm, self.modulation = nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2 * width)
        self.velocity = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, actions))

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, joints: Tensor) -> Tensor:
        waves = sinusoids(timestep, self.width)
        a = self.action_in(x)  # (R, T, D)
        a = self.action_time(torch.cat([a, waves[:, None].expand(-1, self.horizon, -1)], -1))
        a = self.action_out(F.silu(a)) + self.position
        h = torch.cat([self.joints(joints)[:, None], self.future.expand(x.shape[0], -1, -1), a], 1)
        time, context = self.time(waves), self.context_norm(context)
        for block in self.blocks:
            h = block(h, time, context)
        scale, shift = self.modulation(F.silu(time)).chunk(2, -1)
        h = self.norm(h) * (1 + scale[:, None]) + shift[:, None]
        return self.velocity(h[:, -self.horizon :])


def action_head(config: HeadConfig = HeadConfig()) -> Model:
    """Build the model, with the same weights on every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = ActionHead(config).eval()
    return Model(
        name="action-head",
        process=Flow(noise_time=0, velocity="data-noise", integer_timesteps=True),
        latent_shape=config.actions,
        denoiser=denoiser,
        conditions=(
            Condition("context", "array", shape=config.context),
            Condition("joints", "array", shape=(config.joints,)),
        ),
        media=Media("array", config.actions, "float32"),
        defaults=Defaults("flow-euler", 4),
        decoder=nn.Identity(),
        licence="Apache-2.0",
        source="random weights",
    )


def true_size() -> Model:
    """16 layers, 32 heads of 48, a context of 400 tokens of 2048 numbers."""
    return action_head(TRUE_SIZE)
