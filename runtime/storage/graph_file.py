"""Checks of a bundle's ONNX files before a backend opens them: the manifest's, with weights in its files alone.

ONNX lets every tensor name a file of its own, and libraries read it.  This is the part of the format that is needed to
find those names, since not every backend has a library for it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.files.regular import read_regular
from mmgen.runtime.storage.hashes import BRIEF, CHANGED, sha256
from mmgen.runtime.storage.schema import Bundle, Graph, Role

LARGEST = 2**31 - 1  # bytes of a protobuf message
DEEPEST = 100
VARINT, BYTES, FIXED = 0, 2, {1: 8, 5: 4}  # protobuf's wire types, and the bytes of a field of fixed size
KEY, VALUE, LOCATION = 1, 2, b"location"  # of StringStringEntryProto


@dataclass
class Message:
    """A message of onnx.proto: its fields, by number, that may lead to the name of a file."""

    fields: dict[int, "Message"] = field(default_factory=dict)


MODEL, GRAPH, NODE, ATTRIBUTE, TENSOR, SPARSE, FUNCTION, TRAINING, ENTRY = (Message() for _ in range(9))
MODEL.fields |= {7: GRAPH, 20: TRAINING, 25: FUNCTION}
GRAPH.fields |= {1: NODE, 5: TENSOR, 15: SPARSE}
NODE.fields |= {5: ATTRIBUTE}
ATTRIBUTE.fields |= {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE}
TENSOR.fields |= {13: ENTRY}
SPARSE.fields |= {1: TENSOR, 2: TENSOR}
FUNCTION.fields |= {7: NODE, 11: ATTRIBUTE}
TRAINING.fields |= {1: GRAPH, 2: GRAPH}


def graph_content(bundle: Bundle, role: Role) -> bytes:
    """Read the bytes of a graph's ONNX file, checked.

    Raises:
        MmgenError: it can't be read, isn't what the manifest says, isn't ONNX, or has weights in another file than the
            manifest's.
    """
    graph = bundle.graphs[role]
    path = bundle.path(graph.file)
    content = read_regular(path, LARGEST, remedy=CHANGED)
    if (found := hashlib.sha256(content).hexdigest()) != graph.sha256:
        raise MmgenError(f"{path}: sha256", got=found[:BRIEF], wanted=graph.sha256[:BRIEF], remedy=CHANGED)
    try:
        named = set(locations(content))
    except (IndexError, ValueError) as error:
        raise MmgenError(f"{path} is not ONNX ({error})", remedy="export or copy the bundle again") from error
    if others := sorted(named - {PurePosixPath(graph.data or "").name.encode()}):
        raise MmgenError(
            f"{path} has weights in a file that the manifest doesn't name",
            got=shown(others[0].decode("utf-8", "replace")),
            wanted=graph.data or "no file",
            remedy="do not use this bundle",
        )
    return content


def check_files(bundle: Bundle, role: Role) -> None:
    """Compare a graph's files with the manifest once more, before they are opened late.

    Raises:
        MmgenError: one can't be read or has changed.
    """
    graph = bundle.graphs[role]
    for file, wanted in ((graph.file, graph.sha256), (graph.data, graph.data_sha256)):
        if file is None:
            continue
        try:
            found = sha256(bundle.path(file))
        except OSError as error:
            what = f"{bundle.path(file)} can't be read any more ({error.strerror})"
            raise MmgenError(what, remedy="leave a bundle where it is as long as it is open") from error
        if found != wanted:
            what = f"{bundle.path(file)}: sha256"
            raise MmgenError(what, got=found[:BRIEF], wanted=str(wanted)[:BRIEF], remedy=CHANGED)


def check_tensors(what: str, graph: Graph, found: Mapping[str, tuple[str, tuple[object, ...]]]) -> None:
    """Compare a graph's inputs and outputs, as a library read them, with the manifest.

    Args:
        what: begins the error message.
        graph: as in the manifest.
        found: numpy's dtype and shape by name; a size that may vary isn't an int.

    Raises:
        MmgenError: others, or one of another type or shape; a size that the manifest knows may vary.
    """
    wanted = {spec.name: (spec.dtype, spec.shape) for spec in (*graph.inputs, *graph.outputs)}
    remedy = "export or copy the bundle again"
    if set(found) != set(wanted):
        raise MmgenError(f"{what}: inputs and outputs", got=sorted(found), wanted=sorted(wanted), remedy=remedy)
    for name, (dtype, shape) in wanted.items():
        sizes = found[name][1]
        fits = len(sizes) == len(shape) and all(
            not isinstance(size, int) or size == n for size, n in zip(sizes, shape, strict=True)
        )
        if found[name][0] != dtype or not fits:
            got = " ".join(map(str, found[name]))
            raise MmgenError(f"{what}: {name}", got=got, wanted=f"{dtype} {shape}", remedy=remedy)


def locations(content: bytes) -> Iterator[bytes]:
    """Find the files that an ONNX model names for its tensors, wherever in it a tensor is.

    Raises:
        ValueError, IndexError: not a protobuf message.
    """
    todo = [(MODEL, 0, len(content), 0)]
    while todo:
        message, at, end, depth = todo.pop()
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
        entry: dict[int, bytes] = {}
        for number, start, stop in _fields(content, at, end):
            if message is ENTRY:
                entry[number] = content[start:stop]
            elif (inner := message.fields.get(number)) is not None:
                todo.append((inner, start, stop, depth + 1))
        if entry.get(KEY) == LOCATION:
            yield entry.get(VALUE, b"")


def _fields(content: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and stop of each field of a message that has bytes."""
    while at < end:
        tag, at = _varint(content, at) if content[at] > 0x7F else (content[at], at + 1)
        number, kind = tag >> 3, tag & 7
        if kind == BYTES:
            size, at = _varint(content, at) if content[at] > 0x7F else (content[at], at + 1)
            if at + size > end:
                raise ValueError("it is cut short")
            yield number, at, at + size
            at += size
        elif kind == VARINT:
            _, at = _varint(content, at)
        elif kind in FIXED:
            at += FIXED[kind]
        else:
            raise ValueError(f"a field of type {kind}")


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Decode a number in protobuf's variable length, and return it and where it ends."""
    value = shift = 0
    while True:
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        if (shift := shift + 7) > 63:
            raise ValueError("a number without an end")
