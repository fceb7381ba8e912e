"""Unified models in the shape of Show-o and MMaDA, random weights: one vocabulary, one sequence, full attention.

The transformer is one of ``transformers``; segments of a text, a picture and, if there are three, speech follow each
other, and each output has the logits of its segment's positions for its part of the vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from mmgen.export import Condition, Defaults, Masked, Media, Model, Output

WORDS = ["[PAD]", "[END]", "a", "red", "blue", "cat", "dog", "sits", "runs", "here"]
LENGTH, PLACES, HEARD = 8, 16, 6  # positions of a text, a picture and speech
CODES, SPOKEN = 12, 5  # of a picture and of speech
PICTURE = Media("image", (16, 16, 3), "uint8")


@dataclass(frozen=True)
class Vocabulary:
    """Where a vocabulary has its parts, and the order of a sequence."""

    words: int = 0  # the first word
    codes: int = 16  # the first of a picture's codes
    speech: int = 32
    mask: int = 40
    between: tuple[int, ...] = (41, 42, 43)  # special tokens that begin a segment
    size: int = 44
    segments: tuple[str, ...] = ("words", "codes")


USUAL = Vocabulary()
OTHER = Vocabulary(codes=0, words=13, speech=24, mask=12, between=(33, 31, 32), size=34,
                   segments=("codes", "speech", "words"))  # fmt: skip
SIZES = {"words": LENGTH, "codes": PLACES, "speech": HEARD}
PARTS = {"words": len(WORDS), "codes": CODES, "speech": SPOKEN}


class Unified(nn.Module):
    """Tokens of every segment (R, n), masks among them, to logits (R, sequence, vocabulary)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        config = BertConfig(vocab_size=vocabulary.size, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                            intermediate_size=64, max_position_embeddings=64, attn_implementation="eager")  # fmt: skip
        self.transformer, self.head = BertModel(config, add_pooling_layer=False), nn.Linear(32, vocabulary.size)
        nn.init.normal_(self.head.weight, std=0.5)  # so that codes differ

    def forward(self, **segments: Tensor) -> Tensor:
        parts, known = [], self.vocabulary
        for name, begin in zip(known.segments, known.between, strict=False):
            tokens = segments[name]
            offset, masked = getattr(known, name), tokens == PARTS[name]
            begins = torch.full_like(tokens[:, :1], begin)
            parts += [begins, torch.where(masked, known.mask, tokens + offset)]
        out: Tensor = self.head(self.transformer(input_ids=torch.cat(parts, 1)).last_hidden_state)
        return out

    def place(self, name: str) -> slice:
        """Return the positions of a segment."""
        before = self.vocabulary.segments[: self.vocabulary.segments.index(name)]
        start = sum(1 + SIZES[each] for each in before) + 1
        return slice(start, start + SIZES[name])


class Segment(nn.Module):
    """A denoiser of one segment: its tokens (R, n) and the others, by name, to logits (R, part of vocabulary, n)."""

    def __init__(self, unified: Unified, made: str, *given: str) -> None:
        super().__init__()
        self.unified, self.made, self.given = unified, made, given

    def forward(self, tokens: Tensor, *given: Tensor) -> Tensor:
        logits = self.unified(**{self.made: tokens}, **dict(zip(self.given, given, strict=True)))
        first = getattr(self.unified.vocabulary, self.made)
        return logits[:, self.unified.place(self.made), first : first + PARTS[self.made]].transpose(1, 2)


class Quantised(nn.Module):
    """A picture (B, 3, 16, 16) to its codes (B, PLACES), the nearest of a codebook."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.codebook = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(CODES, 8))

    def forward(self, picture: Tensor) -> Tensor:
        found = self.patches(picture).flatten(2).transpose(1, 2)  # (B, PLACES, 8)
        return (found[:, :, None] - self.codebook).square().sum(-1).argmin(-1)


class Patches(nn.Module):
    """Codes (B, PLACES) to a picture (B, 3, 16, 16) in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook, self.out = nn.Embedding(CODES, 8), nn.ConvTranspose2d(8, 3, 4, 4)

    def forward(self, codes: Tensor) -> Tensor:
        return torch.tanh(self.out(self.codebook(codes).transpose(1, 2).reshape(-1, 8, 4, 4)))


def tokenizer() -> bytes:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made.to_str().encode()


def pictures(count: int) -> list[np.ndarray]:
    """Return pictures of blocks of colour."""
    blocks = np.random.default_rng(3).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return list(blocks.repeat(4, 1).repeat(4, 2))


def unified(vocabulary: Vocabulary = USUAL) -> Model:
    """Return a model that makes a picture of a text, and a text of a picture; speech, if any, is given to both."""
    torch.manual_seed(0)
    transformer = Unified(vocabulary).eval()
    speech = ("speech",) if "speech" in vocabulary.segments else ()
    heard = tuple(Condition(name, "array", shape=(HEARD,), dtype="int64", null=0) for name in speech)
    examples = [{"words": "a red cat", "codes": picture} for picture in pictures(2)]
    return Model(
        name="unified",
        tokenizer=tokenizer(),
        inputs=(
            Condition("words", "text", length=LENGTH, null=""), Condition("codes", "image", media=PICTURE), *heard
        ),
        encoders={"codes": Quantised()},
        outputs={
            "picture": Output(
                Masked(codes=CODES, mask_id=CODES), (PLACES,), Segment(transformer, "codes", "words", *speech), PICTURE,
                Defaults("maskgit", 8, guidance=3.0, solver_options={"compounding": True, "temperature": 1.5}),
                decoder=Patches(), inputs=("words", *speech),
            ),
            "text": Output(
                Masked(codes=len(WORDS), mask_id=len(WORDS)), (LENGTH,),
                Segment(transformer, "words", "codes", *speech), Media("text", (LENGTH,), "int64", end_id=1),
                Defaults("llada", LENGTH, solver_options={"blocks": 2}), inputs=("codes", *speech),
            ),
        },
        examples=tuple(example | {name: np.arange(HEARD) % SPOKEN for name in speech} for example in examples),
    )  # fmt: skip


def other_unified() -> Model:
    """Return one with the picture's codes first in vocabulary and sequence, another mask, and three segments."""
    return unified(OTHER)


class Seen(nn.Module):
    """A picture (B, 3, 16, 16) to what a ViT of ``transformers`` makes of it, (B, 17, 16)."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                           image_size=16, patch_size=4, attn_implementation="eager")  # fmt: skip
        self.vit = ViTModel(config, add_pooling_layer=False)

    def forward(self, picture: Tensor) -> Tensor:
        out: Tensor = self.vit(pixel_values=picture).last_hidden_state
        return out


class Captioner(nn.Module):
    """Tokens (R, LENGTH) and what was seen (R, 17, 16) to logits (R, words, LENGTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.position = nn.Embedding(len(WORDS) + 1, 16), nn.Parameter(torch.randn(LENGTH, 16))
        self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, len(WORDS))

    def forward(self, tokens: Tensor, seen: Tensor) -> Tensor:
        x = self.words(tokens) + self.position
        x = x + self.attention(x, seen, seen, need_weights=False)[0]
        out: Tensor = self.out(x).transpose(1, 2)
        return out


def captioner() -> Model:
    """Return a model that makes a text of a picture, which a ViT sees."""
    torch.manual_seed(0)
    (output,) = [replace(output, denoiser=Captioner(), inputs=None) for name, output in unified().outputs.items()
                 if name == "text"]  # fmt: skip
    return Model(
        name="captioner", process=output.process, latent_shape=output.latent_shape, denoiser=output.denoiser,
        conditions=(Condition("photo", "image", media=PICTURE),), media=output.media, defaults=output.defaults,
        encoders={"photo": Seen().eval()}, tokenizer=tokenizer(),
        examples=tuple({"photo": picture} for picture in pictures(2)),
    )  # fmt: skip
