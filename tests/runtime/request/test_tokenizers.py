"""Tokenizers from strangers: those that were trained for anything work, and none hangs, panics or fills the memory."""

import base64
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mmgen.runtime import MmgenError
from mmgen.runtime.request.conditions import open_inputs, values
from mmgen.runtime.request.tokenizer import open_tokenizer
from mmgen.runtime.request.tokenizer_limits import endless, excess
from mmgen.runtime.storage.schema import Condition

WORDS = {"[PAD]": 0, "[UNK]": 1, "red": 2, "green": 3}
BASE: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
}  # fmt: skip
TEXT = {"Sequence": {"id": "A", "type_id": 0}}
PAD = {"SpecialToken": {"id": "[PAD]", "type_id": 0}}


def replacing(content: str, times: int = 1, **pattern: str) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": pattern, "content": content}] * times}


def splitting(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(*pieces: Any) -> dict[str, Any]:
    special = {"[PAD]": {"id": "[PAD]", "ids": [0], "tokens": ["[PAD]"]}}
    return {"type": "TemplateProcessing", "single": list(pieces), "pair": [TEXT], "special_tokens": special}


def encode(folder: Path, text: str = "red apple", length: int = 8, **parts: Any) -> list[int]:
    (folder / "tokenizer.json").write_text(json.dumps({**BASE, **parts}))
    return [int(token) for token in open_tokenizer(folder / "tokenizer.json", length, 0)([text])[0]]


# patterns by which published tokenizers split texts
CLIP = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREES = r"\d{1,3}(?=(?:\d{3})*\b)"  # digits in threes from the right
HAN = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?"


@pytest.mark.parametrize("pattern", [CLIP, GPT2, GPT4, O200K, THREES, HAN, r"\s+", " {2,}", r"[一-龥]+"])
def test_patterns_that_split_texts_are_taken(tmp_path: Path, pattern: str) -> None:
    assert endless(pattern) is None
    assert encode(tmp_path, pre_tokenizer=splitting(pattern))[0] in (1, 2)


@pytest.mark.parametrize("parts", [
    {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                    "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"}},
    {"normalizer": {"type": "Sequence", "normalizers": [  # ALBERT's
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}, {"type": "NFKD"}, {"type": "StripAccents"},
        {"type": "Lowercase"}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}},
    {"normalizer": {"type": "Sequence", "normalizers": [  # Llama's
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [splitting(GPT4), {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}},
    {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}},
    {"normalizer": {"type": "Sequence", "normalizers": [{  # a dozen marks, left out one by one
        "type": "Replace", "pattern": {"Regex": f"[{mark}]"}, "content": " "} for mark in "!#$%&()*+,./:;<=>"]}},
    {"post_processor": template(PAD, TEXT, PAD)},
])  # fmt: skip
def test_parts_of_published_tokenizers_are_taken(tmp_path: Path, parts: dict[str, Any]) -> None:
    assert len(encode(tmp_path, **parts)) == 8


@pytest.mark.parametrize(
    "pattern",
    [
        "(((((((((a*)*)*)*)*)*)*)*)*)*b", "(a*)*b", "(a+)+$", "(a|a)*$", "(a|aa)+$", "((a|a)c)+$", "(?:(?:a?)*)$",
        "a*a*a*a*a*$", r"(a*)\1*$", r"(?<x>a\g<x>?b|c)*d", "(?R)*", "((((a{1000}){1000}){1000}){1000})", "a{1,}{1,}",
        "(?i:(a*)b*)*", "x" * 5000, "(",
    ],
)  # fmt: skip
def test_searches_that_may_take_any_time_are_refused(tmp_path: Path, pattern: str) -> None:
    assert endless(pattern) is not None
    for parts in ({"pre_tokenizer": splitting(pattern)}, {"normalizer": replacing("x", Regex=pattern)}):
        with pytest.raises(MmgenError, match=r"tokenizer\.json is no tokenizer for prompts: '\w+' searches with"):
            encode(tmp_path, **parts)


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
BOMBS = [
    ({"normalizer": replacing("a" * 20, 7, String="a")}, "it may make 1.28e.09 letters of one"),
    ({"normalizer": replacing("ab", 30, Regex="")}, "letters of one"),
    ({"normalizer": replacing("ab", 30, Regex="x*|y")}, "letters of one"),
    ({"normalizer": replacing("ab", 30, String="")}, "letters of one"),
    ({"normalizer": replacing("a" * 1000, String="a")}, "puts in more than 256 bytes"),
    ({"normalizer": {"type": "Prepend", "prepend": "a" * 1000}}, "puts in more than 256 bytes"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 20}}, "letters of one"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 20}}, "letters of one"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100}}, "more than 64 parts"),
    ({"normalizer": {"pattern": {"String": "a"}, "content": "aa"}}, "a normalizer has no type"),
    ({"post_processor": template(*[PAD] * 1000, TEXT)}, "it adds 1000 tokens, and 8 fit"),
    ({"post_processor": template(*[TEXT] * 10)}, "'TemplateProcessing' repeats the text"),
    ({"model": {**BASE["model"], "max_input_chars_per_word": 10**9}}, "words of more than 1000 letters"),
]


@pytest.mark.parametrize(("parts", "message"), BOMBS, ids=[message for _, message in BOMBS])
def test_what_grows_without_bound_is_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    """Also where tokens of its own would set it off while it is loaded."""
    token = {"id": 9, "content": "aaaa", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
             "special": False}  # fmt: skip
    with pytest.raises(MmgenError, match=message + "; export the bundle with another tokenizer"):
        encode(tmp_path, **{**parts, "added_tokens": [token]})


def test_a_table_of_characters_with_long_texts_is_counted() -> None:
    table = base64.b64encode((8).to_bytes(4, "little") + bytes(8) + b"a" * 5000 + b"\0").decode()
    part = {"type": "Precompiled", "precompiled_charsmap": table}
    assert excess(json.dumps({**BASE, "normalizer": part}).encode()) == "it may make 5e+03 letters of one"


def test_a_letter_that_is_taken_apart_and_made_again_is_counted(tmp_path: Path) -> None:
    """U+FDFA has four lams, each of which becomes one again: rounds that each look harmless."""
    rounds = [{"type": "Replace", "pattern": {"String": "\u0644"}, "content": "\ufdfa"}, {"type": "NFKC"}] * 17
    with pytest.raises(MmgenError, match="letters of one"):
        encode(tmp_path, "\u0644", normalizer={"type": "Sequence", "normalizers": rounds})


def test_a_file_larger_than_any_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(MmgenError, match=r"tokenizer\.json: bytes, got 1099511627776, wanted at most 41943040"):
        open_tokenizer(tmp_path / "tokenizer.json", 4, 0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": {**BASE["model"], "unk_token": "[UNX]"}}, "can't encode 'red apple' .*Missing .UNK."),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "is not a tokenizer .*charsmap"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "is not a tokenizer|can't encode"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["x", 0.0]]}}, "can't encode"),
        ({"model": None}, "is not a tokenizer"),
    ],
)
def test_what_the_library_raises_is_one_clear_error(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(MmgenError, match=rf"tokenizer\.json ({message}).*export the bundle again"):
        encode(tmp_path, **parts)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"model": ', b"1" * 5000])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(MmgenError, match=r"tokenizer\.json is (not a|no) tokenizer.*; export the bundle") as caught:
        open_tokenizer(tmp_path / "tokenizer.json", 4, 0)
    assert len(str(caught.value)) < 400


def test_nobody_is_waited_for_at_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(MmgenError, match="it is a pipe or a device"):
        open_tokenizer(tmp_path / "tokenizer.json", 4, 0)


def test_ctrl_c_is_no_panic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    class Interrupted:
        @staticmethod
        def from_buffer(content: bytes) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers, "Tokenizer", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path)


# prompts


@pytest.fixture
def prompt(tmp_path: Path) -> Any:
    """Encodes what is given for a prompt."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(BASE))
    condition = Condition("prompt", "text", null="", length=8)
    bundle: Any = SimpleNamespace(conditions=(condition,), path=lambda name: tmp_path / name)
    each = open_inputs(bundle)["prompt"]
    return lambda given: each.encode(values(condition, given))


def test_bytes_that_a_locale_of_ascii_left_are_the_letters_that_they_are(prompt: Any) -> None:
    left = "é red".encode().decode("ascii", "surrogateescape")
    assert np.array_equal(prompt(left), prompt("é red"))


@pytest.mark.parametrize("text", ["\udcc3", "red \ud800", "\udfff", "é\udca9"])
def test_half_a_letter_is_named(prompt: Any, text: str) -> None:
    at = next(i for i, letter in enumerate(text, 1) if "\ud800" <= letter <= "\udfff")
    with pytest.raises(MmgenError, match=rf"condition 'prompt': letter {at}, got .*, wanted text that UTF-8 can hold"):
        prompt(text)


def test_a_text_that_nobody_typed_is_refused(prompt: Any) -> None:
    with pytest.warns(UserWarning, match="text cut to 8 tokens"):
        assert (prompt("red " * 2500) == 2).all()
    with pytest.raises(MmgenError, match="condition 'prompt', got a text of 10001 letters, wanted at most 10000; shor"):
        prompt("a" * 10_001)
