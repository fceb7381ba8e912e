"""Text to token ids and back, with the tokenizer in the bundle."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.files.regular import read_regular
from mmgen.runtime.request.tokenizer_limits import excess, excess_of_decoder
from mmgen.runtime.storage.schema import Bundle

Encode = Callable[[Sequence[str]], NDArray[np.int64]]  # texts to ids (len(texts), length)
Decode = Callable[[NDArray[np.int64]], tuple[str, ...]]  # ids (B, length) to texts
LARGEST = 40 << 20  # bytes of a tokenizer file; those of a quarter of a million tokens have 33 million
DECODED = 1 << 20  # letters of a text's tokens, before the decoder makes words of them
AGAIN, ANOTHER = "export the bundle again", "export the bundle with another tokenizer"


def open_tokenizer(path: Path, length: int, pad_id: int) -> Encode:
    """Read a Hugging Face ``tokenizers`` file; longer texts are cut to ``length`` tokens with a warning.

    Raises:
        MmgenError: the package isn't installed, or the file is not a tokenizer, or out of bounds; calling what is
            returned, a text that the tokenizer can't encode.
    """

    def limit(tokenizer: Any) -> str | None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        added = tokenizer.num_special_tokens_to_add(False)
        return f"it adds {added} tokens, and {length} fit" if added > length else None

    tokenizer = _opened(path, "prompts", excess, limit)

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


def open_texts(bundle: Bundle) -> Decode | None:
    """Read the tokenizer of the texts that a bundle makes; None where it makes none.

    A text ends before its end token.  Special tokens are left out, and numbers that the tokenizer has no token for.

    Raises:
        MmgenError: as ``open_tokenizer``; calling what is returned, tokens that make too long a text, or that the
            tokenizer can't decode.
    """
    media = bundle.media
    if media.kind != "text":
        return None
    path = bundle.path(media.tokenizer)
    tokenizer = _opened(path, "texts", excess_of_decoder, lambda tokenizer: None)

    def decode(tokens: NDArray[np.int64]) -> tuple[str, ...]:
        return tuple(_text(path, tokenizer, row.tolist(), media.end_id) for row in tokens.reshape(len(tokens), -1))

    return decode


def _text(path: Path, tokenizer: Any, ids: list[int], end: int | None) -> str:
    if end in ids:
        ids = ids[: ids.index(end)]
    try:
        letters = sum(len(tokenizer.id_to_token(token) or "") for token in ids)
        text = str(tokenizer.decode(ids, skip_special_tokens=True)) if letters <= DECODED else ""
    except BaseException as error:
        _raise_unless_its_own(error)
        raise MmgenError(f"{path} can't decode {len(ids)} tokens ({error})", remedy=AGAIN) from error
    if letters > DECODED:
        what = f"{path}: letters of {len(ids)} tokens"
        raise MmgenError(what, got=letters, wanted=f"at most {DECODED}", remedy=ANOTHER)
    return text


def _opened(
    path: Path, purpose: str, excess_of: Callable[[bytes], str | None], limit: Callable[[Any], str | None]
) -> Any:
    """Read a file as a tokenizer whose content and then itself are in bounds; None from a check: it is."""
    try:
        from tokenizers import Tokenizer
    except (ImportError, OSError, MemoryError) as error:
        raise unloaded("tokenizers, a package that text needs,", error, extra("ort")) from error
    content = read_regular(path, LARGEST, remedy=AGAIN)
    try:
        wrong = excess_of(content)
        if wrong is None:
            tokenizer = Tokenizer.from_buffer(content)
            wrong = limit(tokenizer)
    except BaseException as error:
        _raise_unless_its_own(error)
        raise MmgenError(f"{path} is not a tokenizer ({error or type(error).__name__})", remedy=AGAIN) from error
    if wrong is not None:
        raise MmgenError(f"{path} is no tokenizer for {purpose}: {wrong}", remedy=ANOTHER)
    return tokenizer


def _raise_unless_its_own(error: BaseException) -> None:
    """Raise again what isn't the library's: like Ctrl-C, its panics aren't of class ``Exception``."""
    if not isinstance(error, Exception) and type(error).__module__ != "pyo3_runtime":
        raise error
