"""Which files hold a model's weights, by the names that diffusers and transformers give them.

Weights in one file are called NAME.safetensors, or NAME.bin where they are pickled.  In several, NAME.safetensors has
an index next to it, NAME.safetensors.index.json, which says which file holds which tensor.  A variant, half precision
or weights without an average, has its own name in each: NAME.VARIANT.safetensors, NAME.safetensors.index.VARIANT.json
and, as diffusers once wrote it, NAME.safetensors.VARIANT.index.json.
"""

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from safetensors import safe_open

from mmgen.export.base.weights import check_safetensors, read_json
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.temporary import temporary_place

AGAIN = "copy the whole folder again"
SHARD = r"-\d{5}-of-\d{5}"
POINTER = b"version https://git-lfs"  # what Git leaves in place of a large file that it hasn't fetched
MANY = 6  # names in an error


@dataclass(frozen=True)
class Names:
    """What a library calls a model's weights in one file, and whether it prefers an index to that."""

    safetensors: str
    pickle: str
    index_first: bool


DIFFUSERS = Names("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", index_first=True)
TRANSFORMERS = Names("model.safetensors", "pytorch_model.bin", index_first=False)


@dataclass(frozen=True)
class Weights:
    """The files of a model's weights in a folder, all of which exist."""

    folder: Path
    name: str  # what the library calls them in one file, without a variant
    variant: str | None
    files: tuple[Path, ...]
    shards: Mapping[str, str] | None = None  # the file's name for each tensor, where there are several


def weights_of(folder: Path, parts: Mapping[str, Names], variant: str | None = None) -> dict[str, Weights]:
    """Find the weights of each part of a diffusers folder.

    Safetensors come before pickles, and weights that are no variant before any, as in diffusers.  A part that has one
    variant and nothing else is read from that, with a warning.

    Args:
        folder: of the pipeline.
        parts: the names of their files, by subfolder.
        variant: to be taken where a part has it, as with diffusers' option of the same name.

    Raises:
        MmgenError: a part has no weights, several variants to choose from, files that are missing or damaged, or an
            index that doesn't fit them; no part has the variant.
    """
    found = {part: _find(folder / part, names, variant) for part, names in parts.items()}
    taken: dict[str, list[str]] = {}
    for part, weights in found.items():
        if weights.variant:
            taken.setdefault(weights.variant, []).append(part)
    if variant and variant not in taken:
        raise MmgenError(f"{folder} has no weights of the variant {variant!r}", remedy="leave out --variant")
    for name, of in taken.items():
        if name != variant:
            what = f"{folder}: of {' and '.join(of)} only the variant {name} is there, and is read"
            warnings.warn(what, stacklevel=3)
    return found


def _find(folder: Path, names: Names, wanted: str | None) -> Weights:
    choices = _choices(folder, names)
    for variant in (wanted, None):
        if variant in choices:
            return _read(folder, *choices[variant], variant)
    if len(choices) == 1:
        ((variant, (name, file)),) = choices.items()
        return _read(folder, name, file, variant)
    if choices:
        raise MmgenError(
            f"{folder} has several variants of its weights",
            got=" ".join(sorted(map(str, choices))),
            wanted=f"{names.safetensors}, or one variant",
            remedy=f"--variant {min(map(str, choices))}, for instance",
        )
    there = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    index = f"{names.safetensors}.index.json"
    lost = any(re.search(SHARD, name) for name in there)
    raise MmgenError(
        f"{folder} has no {index}" if lost else f"{folder} has no {names.safetensors}",
        got=" ".join(there[:MANY]) + (f" and {len(there) - MANY} more" if len(there) > MANY else "") or "nothing there",
        wanted=f"{index}, which says what is in which file" if lost else f"{names.safetensors} or {names.pickle}",
        remedy=AGAIN,
    )


def _choices(folder: Path, names: Names) -> dict[str | None, tuple[str, Path]]:
    """Return, by variant (None for none), the name without the variant and the file to begin with."""
    choices: dict[str | None, tuple[str, Path]] = {}
    files = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
    for name in (names.safetensors, names.pickle):
        stem, _, suffix = map(re.escape, name.partition("."))
        whole = rf"{stem}(?:\.(?!.*{SHARD})(?P<variant>.+))?\.{suffix}"
        index = rf"{re.escape(name)}\.index(?:\.(?P<variant>.+))?\.json"
        older = rf"{re.escape(name)}\.(?P<variant>.+)\.index\.json"
        for pattern in (index, older, whole) if names.index_first else (whole, index, older):
            for file in files:
                if match := re.fullmatch(pattern, file.name):
                    choices.setdefault(match["variant"], (name, Path(file.path)))
    return choices


def _read(folder: Path, name: str, file: Path, variant: str | None) -> Weights:
    """Check the weights that begin with a file, which may be an index, and return all of their files."""
    if file.suffix != ".json":
        _check(file)
        weights = Weights(folder, name, variant, (file,))
    else:
        shards = _index(file)
        weights = Weights(folder, name, variant, tuple(folder / name for name in sorted(set(shards.values()))), shards)
        for path in weights.files:
            _check(path)
            held = _tensors(path)
            if lost := [tensor for tensor, name in shards.items() if name == path.name and tensor not in held]:
                raise MmgenError(f"{file}: {path.name} has no tensor {lost[0]!r}", remedy=AGAIN)
    if Path(name).suffix != ".safetensors":
        what = f"{weights.files[0]} is a pickle: only its tensors are read, with torch's weights_only loader"
        warnings.warn(what, stacklevel=6)
    return weights


def _index(file: Path) -> dict[str, str]:
    """Read an index: the file's name for each tensor."""
    shards = read_json(file).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise MmgenError(f"{file}: weight_map", got=f"{shards!r:.60}", wanted="a file for each tensor", remedy=AGAIN)
    for name in shards.values():
        if PurePosixPath(name).name != name or "\\" in name:
            raise MmgenError(f"{file}: {name!r} leaves the folder", remedy="do not use this model")
    return shards


def _check(file: Path) -> None:
    if not file.is_file():
        where = f", where a link leads to {os.readlink(file)}" if file.is_symlink() else ""
        raise MmgenError(f"{file} is missing{where}", remedy=AGAIN)
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise MmgenError(f"{file} is a pointer of Git LFS, not the file itself", remedy="git lfs pull")
    if file.suffix == ".safetensors":
        check_safetensors(file)


def _tensors(file: Path) -> set[str]:
    """List the names of the tensors in a file."""
    if file.suffix == ".safetensors":
        with safe_open(file, framework="pt") as opened:
            return set(opened.keys())
    try:
        return set(torch.load(file, map_location="meta", weights_only=True))
    except Exception as error:  # it may hold anything
        raise MmgenError(f"{file} can't be loaded ({f'{error}'.partition(chr(10))[0]})", remedy=AGAIN) from error


@contextmanager
def laid_out(weights: Weights) -> Iterator[Path]:
    """Yield a temporary folder where a library finds these files and their config.json, and no others."""
    with tempfile.TemporaryDirectory(prefix="mmgen-weights-", dir=temporary_place()) as made:
        folder = Path(made)
        _link(weights.folder / "config.json", folder / "config.json")
        if weights.shards is None:
            _link(weights.files[0], folder / weights.name)
        else:
            for file in weights.files:
                _link(file, folder / file.name)
            index = {"metadata": {}, "weight_map": dict(weights.shards)}
            (folder / f"{weights.name}.index.json").write_text(json.dumps(index), encoding="utf-8")
        yield folder


def _link(file: Path, name: Path) -> None:
    try:
        name.symlink_to(file.resolve())
    except OSError:  # a system without links, or without leave to make them
        shutil.copyfile(file, name)
