"""Text to token ids, with the tokenizer in the bundle."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.files.regular import read_regular
from mmgen.runtime.request.tokenizer_limits import excess

Encode = Callable[[Sequence[str]], NDArray[np.int64]]  # texts to ids (len(texts), length)
LARGEST = 40 << 20  # bytes of a tokenizer file; those of a quarter of a million tokens have 33 million
AGAIN, ANOTHER = "export the bundle again", "export the bundle with another tokenizer"


def open_tokenizer(path: Path, length: int, pad_id: int) -> Encode:
    """Read a Hugging Face ``tokenizers`` file; longer texts are cut to ``length`` tokens with a warning.

    Raises:
        MmgenError: the package isn't installed, or the file is not a tokenizer, or out of bounds; calling what is
            returned, a text that the tokenizer can't encode.
    """
    try:
        from tokenizers import Tokenizer
    except (ImportError, OSError, MemoryError) as error:
        raise unloaded("tokenizers, a package that text needs,", error, extra("ort")) from error
    content = read_regular(path, LARGEST, remedy=AGAIN)
    try:
        wrong = excess(content)
        if wrong is None:
            tokenizer = Tokenizer.from_buffer(content)
            tokenizer.no_padding()
            tokenizer.enable_truncation(length)
            if (added := tokenizer.num_special_tokens_to_add(False)) > length:
                wrong = f"it adds {added} tokens, and {length} fit"
    except BaseException as error:
        _raise_unless_its_own(error)
        raise MmgenError(f"{path} is not a tokenizer ({error or type(error).__name__})", remedy=AGAIN) from error
    if wrong is not None:
        raise MmgenError(f"{path} is no tokenizer for prompts: {wrong}", remedy=ANOTHER)

    def encode(texts: Sequence[str]) -> NDArray[np.int64]:
        ids = np.full((len(texts), length), pad_id, np.int64)
        # One by one: encode_batch waits for a pool of threads, on cores that other programs use for milliseconds.
        for row, text in enumerate(texts):
            try:
                encoding = tokenizer.encode(text)
                made = encoding.ids
            except BaseException as error:
                _raise_unless_its_own(error)
                raise MmgenError(f"{path} can't encode {shown(text)} ({error})", remedy=AGAIN) from error
            if len(made) > length:
                what = f"{path}: tokens of {shown(text)}"
                raise MmgenError(what, got=len(made), wanted=f"at most {length}", remedy=AGAIN)
            if encoding.overflowing:
                warnings.warn(f"text cut to {length} tokens: {text[:60]!r}...", stacklevel=8)  # the program's own line
            ids[row, : len(made)] = made
        return ids

    return encode


def _raise_unless_its_own(error: BaseException) -> None:
    """Raise again what isn't the library's: like Ctrl-C, its panics aren't of class ``Exception``."""
    if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
        raise error
