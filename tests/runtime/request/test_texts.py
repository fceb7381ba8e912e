"""Tokens to texts: what published tokenizers do is done, and no stranger's file hangs, panics or fills the memory."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import Media, MmgenError
from mmgen.runtime.request import tokenizer as decoding
from mmgen.runtime.request.tokenizer import open_texts

WORDS = {"[PAD]": 0, "[END]": 1, "red": 2, "▁green": 3, "##s": 4, "<0xC3>": 5, "<0xA9>": 6, "x</w>": 7, "Ġgrün": 8}
BASE: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
    "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[PAD]"},
    "added_tokens": [{"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
                      "normalized": False, "special": True} for i, word in enumerate(["[PAD]", "[END]"])],
}  # fmt: skip
SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
LLAMA = {"type": "Sequence", "decoders": [
    SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]}  # fmt: skip


def texts(folder: Path, *tokens: list[int], end: int | None = 1, **parts: Any) -> tuple[str, ...]:
    (folder / "tokenizer.json").write_text(json.dumps({**BASE, **parts}))
    media = Media("text", (len(tokens[0]),), "int64", end_id=end)
    bundle: Any = SimpleNamespace(media=media, path=lambda name: folder / name)
    decode = open_texts(bundle)
    assert decode is not None
    return decode(np.array(tokens, np.int64))


@pytest.mark.parametrize(("decoder", "tokens", "text"), [
    (None, [2, 2], "red red"),
    (LLAMA, [3, 5, 6, 3], "greené green"),
    ({"type": "WordPiece", "prefix": "##", "cleanup": True}, [2, 4, 2], "reds red"),
    ({"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, [2, 8], "red grün"),
    ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, [3, 3], "green green"),
    ({"type": "BPEDecoder", "suffix": "</w>"}, [7, 7], "x x"),
])  # fmt: skip
def test_decoders_of_published_tokenizers_make_words(tmp_path: Path, decoder: Any, tokens: list, text: str) -> None:
    parts = {"decoder": decoder}
    if decoder and decoder["type"] == "ByteLevel":
        parts["model"] = {**BASE["model"], "vocab": {**WORDS, "ĠgrÃ¼n": 8}}
        parts["model"]["vocab"].pop("Ġgrün")
    assert texts(tmp_path, tokens, **parts) == (text,)


@pytest.mark.parametrize(("tokens", "end", "text"), [
    ([2, 1, 2, 2], 1, "red"),
    ([1, 2, 2, 2], 1, ""),
    ([2, 2, 2, 2], 1, "red red red red"),
    ([2, 3, 2, 2], 3, "red"),
    ([2, 1, 2, 2], None, "red red red"),
    ([0, 2, 0, 2], 1, "red red"),
    ([2, 900, 9, 2], 1, "red red"),
], ids=["ends", "is empty", "doesn't end", "ends with a word", "no end", "special", "no such tokens"])  # fmt: skip
def test_a_text_ends_and_has_no_special_tokens(tmp_path: Path, tokens: list[int], end: int | None, text: str) -> None:
    assert texts(tmp_path, tokens, [2, 2, 2, 2], end=end)[0] == text


def test_media_that_are_no_texts_have_none() -> None:
    bundle: Any = SimpleNamespace(media=Media("codes", (4,), "int64"))
    assert open_texts(bundle) is None


def replacing(content: str, times: int = 1, **pattern: str) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": pattern, "content": content}] * times}


@pytest.mark.parametrize(("decoder", "message"), [
    (replacing("ab", 30, String="a"), "it may make 1.07e.09 letters of one"),
    (replacing("ab", 30, Regex=""), "letters of one"),
    (replacing("a" * 20, String="a"), "it may make 20 letters of one"),
    (replacing("a" * 1000, String="a"), "puts in more than 256 bytes"),
    (replacing("x", Regex="(a*)*b"), "'Replace' searches with"),
    ({"type": "Sequence", "decoders": [{"type": "Fuse"}] * 100}, "more than 64 parts"),
    ({"decoders": []}, "a decoder has no type"),
])  # fmt: skip
def test_what_grows_or_searches_without_bound_is_refused(tmp_path: Path, decoder: Any, message: str) -> None:
    with pytest.raises(MmgenError, match=rf"tokenizer\.json is no tokenizer for texts: .*{message}.*another tokenizer"):
        texts(tmp_path, [2], decoder=decoder)


def test_a_word_of_a_million_letters_is_no_word(tmp_path: Path) -> None:
    model = {**BASE["model"], "vocab": {**WORDS, "a" * 600_000: 9}}
    assert len(texts(tmp_path, [9], model=model)[0]) == 600_000
    with pytest.raises(MmgenError, match="letters of 2 tokens, got 1200000, wanted at most 1048576"):
        texts(tmp_path, [9, 9], model=model)


@pytest.mark.parametrize("tokens", [[2, -1], [2, 1 << 40]])
def test_what_the_library_raises_is_one_clear_error(tmp_path: Path, tokens: list[int]) -> None:
    with pytest.raises(MmgenError, match=r"tokenizer\.json can't decode 2 tokens \(.*export the bundle again"):
        texts(tmp_path, tokens)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"model": '])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    bundle: Any = SimpleNamespace(media=Media("text", (4,), "int64"), path=lambda name: tmp_path / name)
    with pytest.raises(MmgenError, match=r"tokenizer\.json is (not a|no) tokenizer.*; export the bundle"):
        open_texts(bundle)


def test_ctrl_c_is_no_panic() -> None:
    class Interrupted:
        def id_to_token(self, token: int) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decoding._text(Path("tokenizer.json"), Interrupted(), [2], None)


def test_a_panic_is_one_clear_error() -> None:
    class PanicException(BaseException):
        __module__ = "pyo3_runtime"

    class Panics:
        def id_to_token(self, token: int) -> str:
            raise PanicException("index out of bounds")

    with pytest.raises(MmgenError, match=r"can't decode 1 tokens \(index out of bounds\)"):
        decoding._text(Path("tokenizer.json"), Panics(), [2], None)
