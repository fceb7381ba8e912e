"""Conditions of a request, encoded into the arrays that graphs take."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.arrays import as_array
from mmgen.runtime.base.errors import MmgenError, said, shown
from mmgen.runtime.base.numbers import whole
from mmgen.runtime.media.read import read_media
from mmgen.runtime.request.nulls import read_null
from mmgen.runtime.request.tokenizer import open_tokenizer
from mmgen.runtime.storage.schema import Bundle, Condition, Media

LETTERS, LETTERS_A_TOKEN = 10_000, 16  # the longest text, whichever is more; tokens of a longer one would be cut
FILES = (str, os.PathLike, bytes)  # names of files, or what is in one

Encode = Callable[[Sequence[Any]], NDArray[Any]]
EncodeMedia = Callable[[str, NDArray[Any]], NDArray[Any]]  # name of an input and media (n, ...) to features (n, ...)


@dataclass(frozen=True)
class Encoded:
    """What stands for an input without being encoded: its null."""

    array: NDArray[Any]  # as graphs take it, of one sample


@dataclass(frozen=True)
class Input:
    """A condition of a bundle, ready to be encoded."""

    condition: Condition
    null: Any  # the value for no condition; None: it isn't guided
    encode: Encode  # n values to an array (n, ...) as graphs take it


Inputs = Mapping[str, Input]  # by name


def open_inputs(bundle: Bundle, encode: EncodeMedia | None = None) -> dict[str, Input]:
    """Open the conditions of a bundle, by name.

    Args:
        encode: makes of media what the graphs take; None: they take them as they are.

    Raises:
        MmgenError: the tokenizer or a null can't be read, or the package ``tokenizers`` isn't here.
    """
    return {condition.name: _open(bundle, condition, encode) for condition in bundle.conditions}


def values(condition: Condition, given: object, *, resize: bool = False) -> list[Any]:
    """List the values of a condition: one for each sample, or one for all.

    Args:
        given: one value, or a list of them; of an array, lists of numbers too; of a medium, arrays, names of files or
            their bytes.
        resize: fit the size and the rate of media in files to what the condition takes.

    Raises:
        MmgenError: an empty list; of an array or a medium, another shape or type, or a file that can't be read.
    """
    if condition.media is not None:
        return _media(condition, condition.media, given, resize)
    if condition.kind == "array":
        return _arrays(condition, given)
    if isinstance(given, np.ndarray):
        given = list(given) if given.ndim else given[()]
    if not isinstance(given, (list, tuple)):
        return [given]
    if not given:
        raise MmgenError(f"condition {condition.name!r} is an empty list", wanted=wanted(condition))
    return list(given)


def wanted(condition: Condition) -> str:
    """Describe what a condition takes, for an error."""
    match condition.kind:
        case "text":
            return "a string"
        case "class":
            null = f" or {condition.null} for none" if condition.null is not None else ""
            return f"a whole number from 0 to {(condition.count or 1) - 1}{null}"
        case "array":
            return f"{condition.dtype} {condition.shape}"
        case "image" | "video" | "audio" | "series":
            media = condition.media
            return f"{condition.kind}: {media.dtype} {media.shape}, or a file" if media else condition.kind


def _open(bundle: Bundle, condition: Condition, encode: EncodeMedia | None) -> Input:
    match condition.kind:
        case "text":
            tokenize = open_tokenizer(bundle.path(condition.tokenizer), condition.length or 0, condition.pad_id)
            return Input(condition, condition.null, partial(_texts, condition, tokenize))
        case "class":
            return Input(condition, condition.null, partial(_classes, condition))
        case "array":
            null = None if condition.null is None else read_null(bundle, condition)
            return Input(condition, null, np.stack)
        case "image" | "video" | "audio" | "series":
            given = None if condition.null is None else Encoded(read_null(bundle, condition))
            return Input(condition, given, partial(_features, condition, encode))


def _texts(condition: Condition, tokenize: Encode, given: Sequence[Any]) -> NDArray[Any]:
    most = max(LETTERS, LETTERS_A_TOKEN * (condition.length or 0))
    texts = []
    for text in given:
        what = f"condition {condition.name!r}"
        if not isinstance(text, str):
            raise MmgenError(what, got=shown(text), wanted=wanted(condition))
        if len(text) > most:
            raise MmgenError(what, got=f"a text of {len(text)} letters", wanted=f"at most {most}", remedy="shorten it")
        texts.append(_as_utf8(what, text))
    return tokenize(texts)


def _as_utf8(what: str, text: str) -> str:
    """Return a text as UTF-8; in a locale that knows ASCII alone, Python has its bytes as surrogates."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        at, letter = next((i, letter) for i, letter in enumerate(text, 1) if "\ud800" <= letter <= "\udfff")
    remedy = "give text, or bytes of it that are UTF-8"
    raise MmgenError(f"{what}: letter {at}", got=shown(letter), wanted="text that UTF-8 can hold", remedy=remedy)


def _features(condition: Condition, encode: EncodeMedia | None, given: Sequence[Any]) -> NDArray[Any]:
    """Encode media, if there is something to do it; what is encoded already stays."""
    media = [value for value in given if not isinstance(value, Encoded)]
    if not media:
        return np.stack([value.array for value in given])
    stacked = np.stack(media)
    made = iter(stacked if encode is None else encode(condition.name, stacked))
    return np.stack([value.array if isinstance(value, Encoded) else next(made) for value in given])


def _classes(condition: Condition, given: Sequence[Any]) -> NDArray[Any]:
    what, described = f"condition {condition.name!r}", wanted(condition)
    numbers = [whole(what, value, described) for value in given]
    for number in numbers:
        if not (0 <= number < (condition.count or 0) or number == condition.null):
            raise MmgenError(what, got=shown(number), wanted=described)
    return np.array(numbers, np.int64)


def _media(condition: Condition, media: Media, given: object, resize: bool) -> list[Any]:
    what, described = f"condition {condition.name!r}", wanted(condition)
    if isinstance(given, FILES):
        return [read_media(given, media, fit=resize)]
    if isinstance(given, (list, tuple)) and any(isinstance(each, (*FILES, np.ndarray)) for each in given):
        return [value for each in given for value in _media(condition, media, each, resize)]
    array = as_array(what, given, media.dtype, described)
    if not _fits(array, media.shape) or array.size == 0:
        raise MmgenError(what, got=said(given if isinstance(given, np.ndarray) else array), wanted=described)
    return _samples(array, media.shape)


def _arrays(condition: Condition, given: object) -> list[Any]:
    what, described = f"condition {condition.name!r}", wanted(condition)
    if isinstance(given, np.ndarray):
        _check_shape(condition, given)  # before it is copied
    array = as_array(what, given, condition.dtype, described)
    _check_shape(condition, array)
    samples = _samples(array, condition.shape)
    if not samples:
        raise MmgenError(f"{what} is an empty list", wanted=described)
    return samples


def _check_shape(condition: Condition, array: NDArray[Any]) -> None:
    if not _fits(array, condition.shape):
        wanted_ = f"{wanted(condition)}, or (n, ...) for n samples"
        raise MmgenError(f"condition {condition.name!r}", got=said(array), wanted=wanted_)


def _fits(array: NDArray[Any], shape: tuple[int, ...]) -> bool:
    """Return whether an array is one sample of this shape, or n of them: (n, ...)."""
    return array.shape == shape or (array.ndim > 0 and array.shape[1:] == shape)


def _samples(array: NDArray[Any], shape: tuple[int, ...]) -> list[Any]:
    """List the samples of an array that fits."""
    return [array] if array.shape == shape else list(array)
