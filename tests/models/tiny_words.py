"""A generator of sentences by masked diffusion: random weights, a tokenizer of words, and an end that comes early."""

import dataclasses
from typing import Any

import torch
from tiny import Block
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Condition, Defaults, Media

LENGTH, WIDTH, CLASSES = 24, 32, 5  # the width is that of ``tiny.Block``
WORDS = ("[PAD]", "[UNK]", "[END]", *(f"word{i}" for i in range(3, 29)))
END, CODES = WORDS.index("[END]"), 30  # one more than there are words, as in padded vocabularies
PROCESS = Masked(codes=CODES, mask_id=CODES)


class WordDenoiser(nn.Module):
    """(tokens int64 (R, 24), context (R, 1, D)) to logits (R, 30, 24)."""

    def __init__(self, spread: float = 2.0) -> None:
        super().__init__()
        self.spread = spread
        self.embedding, self.position = nn.Embedding(CODES + 1, WIDTH), nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.block, self.norm, self.head = Block(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CODES)
        ends = torch.zeros(CODES, LENGTH)
        ends[END] = torch.linspace(-8, 8, LENGTH)  # the later, the more likely is an end
        self.register_buffer("ends", ends)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        x = self.block(self.embedding(tokens) + self.position, context[:, 0], context)  # (R, N, D)
        return (self.spread * self.head(self.norm(x))).transpose(1, 2) + self.ends


class Label(nn.Module):
    """label int64 (R,) to (context (R, 1, D),)."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, label: Tensor) -> tuple[Tensor]:
        return (self.label(label)[:, None],)


def tokenizer() -> bytes:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:3]])
    return bytes(made.to_str().encode())


def tiny_word_model(**overrides: Any) -> Model:
    """Build the model, with the same weights on every call.  ``overrides`` replaces fields of the ``Model``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Model(
            name="tiny-words",
            process=PROCESS,
            latent_shape=(LENGTH,),
            denoiser=WordDenoiser().eval(),
            conditions=(Condition("label", "class", null=CLASSES, count=CLASSES),),
            media=Media("text", (LENGTH,), "int64", end_id=END),
            defaults=Defaults("llada", 12, guidance=1.5, solver_options={"blocks": 3}),
            condition=Label().eval(),
            conditioning=("context",),
            tokenizer=tokenizer(),
            licence="Apache-2.0",
            source="random weights",
        )
    return dataclasses.replace(model, **overrides)
