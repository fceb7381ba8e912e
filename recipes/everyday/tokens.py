"""Words as numbers: a WordPiece vocabulary of names, questions and sentences, and the ways in which people ask."""

from pathlib import Path

import numpy as np
import torch
from films import MOTIONS
from names import Name
from questions import every_text
from strokes import WORDS
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer
from torch import Tensor

VOCABULARY = 2048
LENGTH = 32  # tokens that are given
ANSWER = 16  # tokens that are made
PAD, UNKNOWN, END = 0, 1, 2
ASKED = ("{}", "a {}", "the {}", "{} please", "a {} please", "draw a {}", "show me a {}", "picture of a {}", "{} emoji",
         "a {}, please", "please draw a {}", "can you draw a {}?", "i want a {}", "an image of a {}")  # fmt: skip


def make_tokenizer(names: list[Name]) -> Tokenizer:
    """Train it: words of names first, so that nearly every one is a token of its own."""
    texts = [n.name for n in names] * 20 + [k for n in names for k in n.keywords]
    texts += [*every_text(), *MOTIONS, *WORDS, *(way.format("") for way in ASKED)] * 50
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["[PAD]", "[UNK]", "[END]"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789#*?.,!'-"),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(folder: Path, names: list[Name]) -> Tokenizer:
    """From ``tokenizer.json``, which is made where it isn't there."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        make_tokenizer(names).save(str(file))
    return Tokenizer.from_file(str(file))


def encode_given(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """int64 (B, T), T as long as the longest of them needs, at most ``LENGTH``."""
    rows = [e.ids[:LENGTH] for e in tokenizer.encode_batch(texts)]
    longest = max(1, *map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


def encode_made(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """int64 (B, ANSWER, 1), filled up with ``END``."""
    rows = [e.ids[: ANSWER - 1] for e in tokenizer.encode_batch(texts)]
    return torch.tensor([row + [END] * (ANSWER - len(row)) for row in rows])[..., None]


def decode_made(tokenizer: Tokenizer, codes: Tensor) -> list[str]:
    """Texts of (B, ANSWER, 1), up to their ends."""
    rows = [row[: row.index(END)] if END in row else row for row in codes[..., 0].tolist()]
    return tokenizer.decode_batch(rows)


def ask_for(name: Name, random: np.random.Generator) -> str:
    """A text for which the emoji is what is wanted: mostly its name, at times with keywords or of them alone."""
    choice = random.random()
    some = [str(w) for w in random.permutation(name.keywords)[: random.integers(1, 4)]] if name.keywords else []
    if choice < 0.8 or not some:
        return str(random.choice(ASKED)).format(name.name) if choice < 0.35 else name.name
    return " ".join([name.name, *some] if choice < 0.93 or len(some) < 2 else some)
