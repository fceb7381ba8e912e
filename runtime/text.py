"""Text to token ids, with the tokenizer that lies in the bundle."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.distribution import extra
from mmgen.runtime.errors import MmgenError

Encode = Callable[[Sequence[str]], NDArray[np.int64]]  # texts to ids (len(texts), length)


def open_tokenizer(path: Path, length: int, pad_id: int) -> Encode:
    """Read a Hugging Face ``tokenizers`` file; longer texts are cut to ``length`` tokens with a warning."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MmgenError("text needs the package tokenizers", remedy=extra("ort")) from error
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the library raises nothing more specific
        raise MmgenError(f"{path} is not a tokenizer ({error})", remedy="export the bundle again") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)

    def encode(texts: Sequence[str]) -> NDArray[np.int64]:
        ids = np.full((len(texts), length), pad_id, np.int64)
        # One by one: encode_batch waits for a pool of threads, on cores that other programs use for milliseconds.
        for row, (text, encoding) in enumerate(zip(texts, map(tokenizer.encode, texts), strict=True)):
            if encoding.overflowing:
                warnings.warn(f"text cut to {length} tokens: {text[:60]!r}...", stacklevel=6)  # the program's own line
            ids[row, : len(encoding.ids)] = encoding.ids
        return ids

    return encode
