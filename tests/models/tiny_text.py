"""The tiny model asked by text or by class, neither of them required: what the command line is tested with."""

import torch
from tiny import CLASSES, WIDTH, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.runtime.storage.schema import Condition

WORDS = ("[PAD]", "[UNK]", "red", "green", "blue", "apple", "cat", "rocket")
LENGTH = 4


class Context(nn.Module):
    """(prompt int64 (R, 4), label int64 (R,)) to (context (R, 5, D),)."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.label = nn.Embedding(len(WORDS), WIDTH), nn.Embedding(CLASSES + 1, WIDTH)

    def forward(self, prompt: Tensor, label: Tensor) -> tuple[Tensor]:
        return (torch.cat([self.word(prompt), self.label(label)[:, None]], 1),)


def tiny_text_model() -> Model:
    """Build the model, with the same weights on every call."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        context = Context().eval()
    return tiny_model(
        name="tiny-text",
        condition=context,
        conditions=(
            Condition("prompt", "text", null="", length=LENGTH, pad_id=0),
            Condition("label", "class", null=CLASSES, count=CLASSES),
        ),
        tokenizer=tokenizer.to_str().encode(),
    )
