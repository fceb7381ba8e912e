"""Limits on a tokenizer: its file is a small program, which runs on text that users type.

Nothing in it may make a text far longer than it was, or search it for longer than anybody waits.  Tokenizers that
were trained for real models do neither.
"""

import binascii
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mmgen.runtime.base.errors import shown

PARTS = 64  # normalizers, pre-tokenizers and post-processors, or decoders, counting those in sequences
GROWTH = 4000.0  # largest growth of a text in bytes, at worst; published tokenizers stay below 600
DECODER_GROWTH = 16.0  # the same for decoders, which published tokenizers have for spaces and bytes alone
LITERAL = 256  # bytes of a text that is inserted
WORD = 1000  # letters of a word that is looked up piece by piece
PATTERN = 4096  # letters of a regular expression
LOOPS = 3  # parts of one that may be of any length, one after the other
GROWS = {"ByteLevel": 2.0, "NFC": 3.0, "NFD": 3.0, "NFKC": 11.0, "NFKD": 11.0, "BertNormalizer": 5.0, "Lowercase": 1.5}
INSIDE = ("normalizers", "pretokenizers", "processors", "decoders")  # of sequences

# Of a regular expression only repetitions matter, so one letter stands for whatever matches one letter.
ESCAPED = re.compile(r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|.)", re.S)
CLASS = re.compile(r"\[\^?\]?[^\[\]]*\]", re.S)
REPEAT = r"(?:[*+?]|\{[0-9]*,?[0-9]*\})"
GROUP = re.compile(rf"\((\?<?[=!])?(?:\?(?:[:>|]|P?<\w+>|[a-z-]*:|[a-z-]+(?=\))))?([^()]*)\)({REPEAT}?)", re.S)
LOOP = re.compile(r"[*+]|\{[0-9]*,\}")
REPEATS = re.compile(rf"{REPEAT}(?<!\{{[0-9]\}})")  # a few exactly are no worse than their letters
REFERENCE, CHOICE = "\0", "x{1,1}"
STACKED = re.compile(rf"{REPEAT}[?+]*[*{{]")
OPTIONAL = re.compile(r".(?:[*?]|\{0*,[0-9]*\}|\{0+\})[?+]*", re.S)


def excess(content: bytes) -> str | None:
    """Find what in a ``tokenizer.json`` is out of bounds; None: nothing.

    Raises:
        ValueError, RecursionError: it isn't JSON.
    """
    record = json.loads(content)
    if not isinstance(record, dict):
        return "it is no object"
    if wrong := _excess_of(record, ("normalizer", "pre_tokenizer", "post_processor"), GROWTH):
        return wrong
    model = record.get("model")
    letters = model.get("max_input_chars_per_word", 0) if isinstance(model, dict) else 0
    if not isinstance(letters, (int, float)) or letters > WORD:
        return f"it looks up words of more than {WORD} letters"
    return None


def excess_of_decoder(content: bytes) -> str | None:
    """Find what is out of bounds in a ``tokenizer.json`` that makes texts of tokens, as ``excess`` does for prompts."""
    return excess(content) or _excess_of(json.loads(content), ("decoder",), DECODER_GROWTH)


def _excess_of(record: dict[str, Any], roles: Sequence[str], most: float) -> str | None:
    """Find what is out of bounds in these roles together, ``most`` being how many bytes they may make of one."""
    growth, count = 1.0, 0
    for role in roles:
        for part in _parts(record.get(role)):
            count += 1
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str) or count > PARTS:
                return f"a {role} has no type" if count <= PARTS else f"it has more than {PARTS} parts"
            if wrong := _wrong_of(part):
                return f"{shown(kind)} {wrong}"
            if role != "post_processor":
                growth *= _growth(part, kind)
    return None if growth <= most else f"it may make {growth:.3g} letters of one"


def _parts(record: Any) -> Iterator[Any]:
    """Yield the parts of a sequence of sequences, and the sequences themselves."""
    todo = [] if record is None else [record]
    while todo:
        part = todo.pop()
        yield part
        if isinstance(part, dict):
            todo += [inner for name in INSIDE if isinstance(part.get(name), list) for inner in part[name]]


def _wrong_of(part: dict[str, Any]) -> str | None:
    """Say what a part does that isn't allowed, in words that follow its type."""
    pattern = _pattern(part, "Regex")
    if pattern is not None and (wrong := endless(pattern)):
        return f"searches with {pattern[:40]!r}, which {wrong}"
    if any(len(str(part.get(name, "")).encode("utf-8", "replace")) > LITERAL for name in ("content", "prepend")):
        return f"puts in more than {LITERAL} bytes"
    pieces = part.get("single")
    if isinstance(pieces, list) and sum("Sequence" in piece for piece in pieces if isinstance(piece, dict)) > 1:
        return "repeats the text"
    return None


def _growth(part: dict[str, Any], kind: str) -> float:
    """Return how many bytes one byte may become."""
    if kind == "Precompiled":
        return _longest(part.get("precompiled_charsmap"))
    if kind != "Replace":
        return GROWS.get(kind, 1.0)
    made = len(str(part.get("content", "")).encode("utf-8", "replace"))
    pattern, literal = _pattern(part, "Regex"), _pattern(part, "String")
    if pattern is None and literal:
        return max(1.0, made / len(literal.encode("utf-8", "replace")))
    return max(1.0, made) if pattern is not None and not _finds_nothing(_reduced(pattern) or "") else 1.0 + made


def _pattern(part: dict[str, Any], kind: str) -> str | None:
    pattern = part.get("pattern")
    found = pattern.get(kind) if isinstance(pattern, dict) else None
    return found if isinstance(found, str) else None


def _longest(charsmap: Any) -> float:
    """Return the longest text's bytes in SentencePiece's table: four bytes of size, that many of a trie, then texts."""
    try:
        table = binascii.a2b_base64(charsmap)
    except (ValueError, TypeError):  # for the library to refuse
        return 1.0
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(1.0, *map(len, texts.split(b"\0")))


def endless(pattern: str) -> str | None:
    """Say why a search for a regular expression may take very long; None: it doesn't.

    Patterns that split texts into words repeat letters and classes of them, not repetitions or alternatives.
    """
    if len(pattern) > PATTERN:
        return f"has more than {PATTERN} letters"
    reduced = _reduced(pattern)
    if reduced is None:
        return "repeats what repeats or has ways, or refers to itself"
    if _loops(reduced) > LOOPS:
        return f"has more than {LOOPS} parts of any length, one after the other"
    return None


def _reduced(pattern: str) -> str | None:
    """Simplify a regular expression: no groups, one letter for any letter, and its repetitions unchanged.

    None: a repetition or alternatives are repeated, or it refers to a group.
    """
    text = ESCAPED.sub(_letter, pattern)
    while CLASS.search(text):
        text = CLASS.sub("x", text)
    while found := GROUP.search(text):
        around, inner, repeat = found.groups()
        again = repeat not in ("", "?")
        if inner[:1] == "?" or STACKED.search(inner) or (again and ("|" in inner or REPEATS.search(inner))):
            return None
        letter = "" if around else "x?" if repeat == "?" or _finds_nothing(inner) else CHOICE if "|" in inner else "x"
        made = f"x{repeat}" if again else letter + "x*" * _loops(inner)
        text = text[: found.start()] + made + text[found.end() :]
    return None if REFERENCE in text or "(" in text or STACKED.search(text) else text


def _letter(escaped: re.Match[str]) -> str:
    """Return what stands for an escaped letter."""
    letter = escaped[0][1]
    return "" if letter in "bBAzZG" else REFERENCE if letter in "123456789gk" else "x"


def _loops(text: str) -> int:
    """Count the parts of any length that may follow each other."""
    return max(len(LOOP.findall(way)) for way in text.split("|"))


def _finds_nothing(text: str) -> bool:
    """Check whether it matches an empty text."""
    return any(not OPTIONAL.sub("", way).strip("^$") for way in text.split("|"))
