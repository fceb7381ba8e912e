"""A model of four outputs with random weights: a picture by flow, words by masks, sound by diffusion, and a motion.

They share a transformer, and take a text, a picture or both.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from mmgen.export import Condition, Defaults, Diffusion, Flow, Masked, Media, Model, Output

WORDS = ["[PAD]", "[END]", "a", "red", "blue", "cat", "dog", "sits", "runs", "here"]
WIDTH = 32
PICTURE = Media("image", (16, 16, 3), "uint8")


class Block(nn.Module):
    """Attention of what is made (R, N, WIDTH) to what is given (R, M, WIDTH), and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        scores = self.query(self.first(x)) @ self.key(given).transpose(1, 2) / math.sqrt(WIDTH)  # (R, N, M)
        x = x + scores.softmax(-1) @ self.value(given)
        out: Tensor = x + self.feed(self.second(x))
        return out


class Denoiser(nn.Module):
    """Latents (R, channels, ...) and what is given to latents."""

    def __init__(self, block: Block, channels: int, positions: int) -> None:
        super().__init__()
        self.block, self.into, self.out = block, nn.Linear(channels, WIDTH), nn.Linear(WIDTH, channels)
        self.position, self.time = nn.Parameter(torch.randn(positions, WIDTH)), nn.Linear(1, WIDTH)

    def forward(self, x: Tensor, timestep: Tensor, given: Tensor) -> Tensor:
        h = self.into(x.flatten(2).transpose(1, 2)) + self.position + self.time(timestep[:, None] / 1000)[:, None]
        out: Tensor = self.out(self.block(h, given)).transpose(1, 2).reshape(x.shape)
        return out


class Writer(nn.Module):
    """Tokens (R, N) and what is given to logits (R, words, N)."""

    def __init__(self, block: Block, positions: int) -> None:
        super().__init__()
        self.block, self.words, self.out = block, nn.Embedding(len(WORDS) + 1, WIDTH), nn.Linear(WIDTH, len(WORDS))
        self.position = nn.Parameter(torch.randn(positions, WIDTH))

    def forward(self, tokens: Tensor, given: Tensor) -> Tensor:
        out: Tensor = self.out(self.block(self.words(tokens) + self.position, given)).transpose(1, 2)
        return out


class Patches(nn.Module):
    """A picture (B, 3, 16, 16) to (B, 16, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)

    def forward(self, picture: Tensor) -> Tensor:
        return self.patches(picture).flatten(2).transpose(1, 2)


class Given(nn.Module):
    """Text (R, length) and what a picture was encoded to, one after the other: (R, M, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS), WIDTH)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([self.words(x) if x.dtype == torch.int64 else x for x in inputs], 1)


class Mean(nn.Module):
    """What an input was encoded to, (B, ...), to a vector (B, 16)."""

    def __init__(self, *before: nn.Module) -> None:
        super().__init__()
        self.before, self.out = nn.Sequential(*before), nn.Linear(WIDTH, 16)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.out(self.before(features).mean(1))
        return out


class Decoder(nn.Module):
    """Latents of so many numbers to media of a shape, in [-1, 1]."""

    def __init__(self, numbers: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.out, self.shape = nn.Linear(numbers, math.prod(shape)), tuple(shape)

    def forward(self, latents: Tensor) -> Tensor:
        return torch.tanh(self.out(latents.flatten(1))).reshape(-1, *self.shape)


def tokenizer() -> bytes:
    """Return a tokenizer that knows ``WORDS``."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str().encode()


def example() -> np.ndarray:
    """Return a picture of blocks of colour."""
    blocks = np.random.default_rng(1).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture: np.ndarray = blocks.repeat(4, 0).repeat(4, 1)
    return picture


def four_outputs() -> Model:
    """Return the model, the same each time."""
    torch.manual_seed(0)
    block, given = Block(), Given()
    return Model(
        name="four",
        tokenizer=tokenizer(),
        inputs=(
            Condition("text", "text", length=6, null=""),
            Condition("image", "image", null=np.zeros(PICTURE.shape, np.uint8), media=PICTURE),
        ),
        encoders={"image": Patches()},
        embeds={"image": Mean(), "text": Mean(nn.Embedding(len(WORDS), WIDTH))},
        outputs={
            "picture": Output(
                Flow(), (4, 4, 4), Denoiser(block, 4, 16), PICTURE, Defaults("flow-euler", 4, guidance=2.0),
                decoder=Decoder(64, (3, 16, 16)), inputs=("text",), condition=given, conditioning=("given",),
            ),
            "caption": Output(
                Masked(codes=len(WORDS), mask_id=len(WORDS)), (8,), Writer(block, 8),
                Media("text", (8,), "int64", end_id=1), Defaults("llada", 8), inputs=("image",),
            ),
            "sound": Output(
                Diffusion(), (4, 8), Denoiser(block, 4, 8), Media("audio", (64, 1), "float32", rate=8000.0),
                Defaults("ddim", 4), decoder=Decoder(32, (1, 64)), condition=given, conditioning=("given",),
            ),
            "motion": Output(
                Flow(), (2, 8), Denoiser(block, 2, 8),
                Media("series", (8, 2), "float32", rate=50.0, labels=("x", "y"), units=("m", "m")),
                Defaults("flow-euler", 4), decoder=Decoder(16, (8, 2)), inputs=("image",),
            ),
        },
        examples=({"text": "a red cat", "image": example()}, {"text": "a dog runs", "image": example()[::-1].copy()}),
        licence="MIT",
    )  # fmt: skip
