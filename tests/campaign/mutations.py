"""Bundles that are wrong somewhere, by the thousand: each mutation changes a whole copy, by a random generator."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from mmgen.runtime.storage.hashes import CHECKSUM, checksum_of, sha256
from mmgen.runtime.storage.schema import GOLDEN, MANIFEST, TOKENIZER

Mutation = Callable[[Path, Random], str]  # changes a bundle; says what it changed

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, 10**19, 10**400, 0.0, -0.5, 1e-320, 1e308, -1e308,
    float("inf"), float("nan"), "", "x", "a" * 10_000, "é", "\u202e", "\x1b[2J", "\ud800", "a\0b", "../x", "/dev/zero",
    [], {}, [1], [[]], {"a": 1}, "float16", "float32", "float64", "complex64", "B", "G", "R", "N", "image", "step",
    "diffusion", "flow", "masked", "text", "class", "array", 4, 8, 16, 1000,
)  # fmt: skip


def manifest_value(bundle: Path, random: Random) -> str:
    """Change values of the manifest, whose checksum is then made right."""
    record = json.loads((bundle / MANIFEST).read_text())
    record.pop(CHECKSUM, None)
    said = [_change(record, random) for _ in range(random.choice((1, 1, 1, 2, 3)))]
    _write_manifest(bundle, record)
    return "; ".join(said)


def manifest_bit(bundle: Path, random: Random) -> str:
    """Flip a bit of the manifest, or cut it; its checksum stays."""
    return _spoil(bundle / MANIFEST, random)


def graph_bytes(bundle: Path, random: Random) -> str:
    """Spoil an ONNX file, whose hash is then made right."""
    return _spoilt(bundle, random, sorted((bundle / "graphs").glob("*.onnx")))


def weight_bytes(bundle: Path, random: Random) -> str:
    """Spoil weights, whose hash is then made right."""
    return _spoilt(bundle, random, sorted((bundle / "graphs").glob("*.data")))


def golden_bytes(bundle: Path, random: Random) -> str:
    """Spoil the golden, whose hash is then made right."""
    return _spoilt(bundle, random, sorted([*bundle.glob(GOLDEN), *bundle.glob("golden/*.npz")]))


def tokenizer_value(bundle: Path, random: Random) -> str:
    """Change values of the tokenizer, whose hash is then made right."""
    path = bundle / TOKENIZER
    record = json.loads(path.read_text())
    said = _change(record, random)
    path.write_text(_dumped(record))
    _rehash(bundle)
    return said


def sidecar(bundle: Path, random: Random) -> str:
    """Change or spoil what says which engines and optimised graphs there are."""
    path = random.choice(sorted([*bundle.glob("engines/*/build.json"), *bundle.glob("optimised/*/optimised.json")]))
    if random.random() < 0.5:
        return f"{path.name}: {_spoil(path, random)}"
    record = json.loads(path.read_text())
    said = _change(record, random)
    path.write_text(_dumped(record))
    return f"{path.name}: {said}"


def file(bundle: Path, random: Random) -> str:
    """Put something else in the place of a file: nothing, a folder, a pipe, a device, a link, an empty or a cut one."""
    path = random.choice(sorted(p for p in bundle.rglob("*") if p.is_file()))
    size = path.stat().st_size
    outside = bundle.parent / "outside"
    shutil.copy(path, outside)
    kind = random.choice(("nothing", "folder", "pipe", "device", "link", "loop", "empty", "cut", "longer"))
    if kind in ("cut", "longer"):
        os.truncate(path, random.randrange(size) if kind == "cut" else size + 10)
        return f"{path.name}: {kind}"
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to(random.choice(("/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem")))
        case "link":
            path.symlink_to(outside)
        case "loop":
            path.symlink_to(path)
        case "empty":
            path.touch()
    return f"{path.name}: {kind}"


MUTATIONS: tuple[Mutation, ...] = (
    manifest_value, manifest_value, manifest_value, manifest_bit, graph_bytes, weight_bytes, golden_bytes,
    tokenizer_value, sidecar, file,
)  # fmt: skip


def _change(record: Any, random: Random) -> str:
    """Change one value somewhere in parsed JSON, in place; says where and to what."""
    *way, last = random.choice([path for path in _paths(record) if path])
    parent = _at(record, way)
    other = _at(record, random.choice(list(_paths(record))))
    kind = random.random()
    if kind < 0.5:
        parent[last] = random.choice(VALUES)
    elif kind < 0.6:
        del parent[last]
        return f"{[*way, last]} left out"
    elif kind < 0.7 and isinstance(parent, list):
        parent.insert(last, json.loads(json.dumps(other)))
    elif kind < 0.85 and type(parent[last]) in (int, float):
        parent[last] = type(parent[last])(parent[last] * random.choice((-1, 0.5, 2, 10)) + random.choice((0, 1)))
    elif kind < 0.95 and isinstance(parent[last], str) and parent[last]:
        at = random.randrange(len(parent[last]))
        letter = chr(ord(parent[last][at]) ^ 1 << random.randrange(7))
        parent[last] = parent[last][:at] + letter + parent[last][at + 1 :]
    else:
        parent[last] = json.loads(json.dumps(other))
    return f"{[*way, last]} = {str(parent[last])[:60]!r}"


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _paths(item, (*path, key))


def _at(value: Any, path: Any) -> Any:
    for key in path:
        value = value[key]
    return value


def _spoil(path: Path, random: Random) -> str:
    """Flip a bit, change some bytes, cut or repeat a piece."""
    content = bytearray(path.read_bytes())
    at = random.randrange(len(content))
    kind = random.choice(("bit", "bit", "bit", "bytes", "cut", "repeat"))
    match kind:
        case "bit":
            content[at] ^= 1 << random.randrange(8)
        case "bytes":
            content[at : at + 8] = random.randbytes(8)
        case "cut":
            del content[at : at + random.choice((1, 100, len(content)))]
        case "repeat":
            content[at:at] = content[at : at + 50]
    path.write_bytes(content)
    return f"{path.name}: {kind} at {at}"


def _spoilt(bundle: Path, random: Random, files: list[Path]) -> str:
    said = _spoil(random.choice(files), random)
    _rehash(bundle)
    return said


def _rehash(bundle: Path) -> None:
    """Make all hashes of the manifest right."""
    record = json.loads((bundle / MANIFEST).read_text())
    record.pop(CHECKSUM, None)
    outputs = list(record["outputs"].values()) if "outputs" in record else [record]
    for output in outputs:
        output["golden_sha256"] = sha256(bundle / output.get("golden", GOLDEN))
        for graph in output["graphs"].values():
            graph["sha256"] = sha256(bundle / graph["file"])
            if graph["data"]:
                graph["data_sha256"] = sha256(bundle / graph["data"])
    if "outputs" in record:
        record["tokenizers"] = {file: sha256(bundle / file) for file in record["tokenizers"]}
    else:
        record["tokenizer_sha256"] = sha256(bundle / TOKENIZER)
    _write_manifest(bundle, record)


def _write_manifest(bundle: Path, record: dict[str, Any]) -> None:
    try:
        checksum = checksum_of(record)
    except ValueError:  # half a letter, or a number that JSON doesn't have
        checksum = ""
    (bundle / MANIFEST).write_text(_dumped({**record, CHECKSUM: checksum}))


def _dumped(record: Any) -> str:
    return json.dumps(record)
