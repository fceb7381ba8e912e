"""What the text encoder reads: a WordPiece tokenizer over the captions, and how captions are drawn."""

from collections import Counter

import numpy as np
from data import Emoji
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing


def make_tokenizer(emoji: list[Emoji], vocabulary: int, length: int) -> Tokenizer:
    """WordPiece whose pieces are whole words, and single characters for all others.

    [PAD] 0, [UNK] 1, [CLS] 2; then the characters, the words of all names, and keywords, most frequent first.
    Every text starts with [CLS], so that an empty one is not empty to the encoder.
    """
    plain = [e for e in emoji if e.base == e.unified]
    names = Counter(w for e in emoji for text in (e.name, *e.aliases) for w in text.split())
    keywords = Counter(w for e in plain for text in e.keywords for w in text.split())
    characters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789#*+!?"))
    pieces = ["[PAD]", "[UNK]", "[CLS]", *characters, *(f"##{c}" for c in characters)]
    pieces += [w for w, _ in names.most_common()] + [w for w, _ in keywords.most_common()]
    vocab = {piece: i for i, piece in enumerate(list(dict.fromkeys(pieces))[:vocabulary])}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    tokenizer.enable_padding(length=length, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(length)
    return tokenizer


def draw(emoji: Emoji, random: np.random.Generator) -> str:
    """A caption for training: mostly the name, at times another name, keywords, or nothing (for guidance)."""
    choice = random.random()
    if choice < 0.1:
        return ""
    if choice < 0.7 or not (emoji.aliases or emoji.keywords):
        return emoji.name
    if choice < 0.85 and emoji.aliases:
        return str(random.choice(emoji.aliases))
    some = [str(w) for w in random.permutation(emoji.keywords)[: random.integers(1, 4)]] if emoji.keywords else []
    return " ".join([emoji.name, *some] if choice < 0.95 or len(some) < 2 else some)
