"""The files of a checkpoint folder, whatever its format: written with their hashes, and read only if they agree."""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmgen.export.base.weights import load_safetensors, load_strictly, read_json
from mmgen.export.networks.vqvae import VQVAE
from mmgen.export.sources.checkpoint import int8
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import followed
from mmgen.runtime.files.folders import whole_folder
from mmgen.runtime.files.json_records import from_json, to_json
from mmgen.runtime.storage.hashes import sha256

CONFIG, WEIGHTS, TOKENIZER = "config.json", "weights.safetensors", "tokenizer.json"
AUTOENCODER = "autoencoder"  # first part of the names of the weights of pictures' autoencoder
Storage = Literal["float32", "float16", "int8"]
Record = TypeVar("Record")


def home(folder: Path, shared: str) -> Path:
    """Return the folder of what is shared: the checkpoint's own or, if it shares something, one next to it."""
    if shared and (Path(shared).name != shared or shared == ".."):
        raise MmgenError(f"{folder / CONFIG}: shared", got=repr(shared), wanted="the name of a folder next to this one")
    return folder.resolve().parent / shared if shared else folder


def located(folder: Path, shared: str, own: Iterable[str], at_home: Iterable[str]) -> dict[str, Path]:
    """Return where files are, by their names in ``files``: some in the folder, some in the home of what is shared."""
    there, prefix = home(folder, shared), f"{shared}/" if shared else ""
    return {name: folder / name for name in own} | {prefix + name: there / name for name in at_home}


def read_record(folder: Path, kind: type[Record], wanted: str) -> Record:
    """Read ``config.json``, of the format ``wanted``."""
    path = folder / CONFIG
    record = read_json(path)
    if record.get("format") != wanted:
        raise MmgenError(f"{path}: format", got=repr(record.get("format")), wanted=repr(wanted), remedy="update mmgen")
    try:
        return from_json(kind, record, str(path))
    except MmgenError as error:
        remedy = "update mmgen, or save the checkpoint again"
        raise MmgenError(error.what, got=error.got, wanted=error.wanted, remedy=remedy) from None


def check_hashes(files: Mapping[str, Path], hashes: Mapping[str, str]) -> None:
    """Raise MmgenError unless every file is there, with the SHA-256 of its name."""
    for name, file in files.items():
        if not file.is_file():
            raise MmgenError(f"{file} is missing", remedy="copy the whole checkpoint again")
        wanted, found = hashes.get(name), sha256(file)
        if found != wanted:
            raise MmgenError(
                f"{file}: sha256",
                got=found[:16],
                wanted=str(wanted)[:16],
                remedy="the file changed; copy the checkpoint again",
            )


def check_tokenizer(path: Path, vocabulary: int, what: str) -> None:
    """Raise MmgenError unless a file is a tokenizer of at most so many tokens."""
    try:
        tokens = Tokenizer.from_buffer(path.read_bytes()).get_vocab_size()
    except Exception as error:  # the library raises nothing more specific
        raise MmgenError(f"{path} is not a tokenizer ({error})", remedy="save the checkpoint again") from error
    if tokens > vocabulary:
        raise MmgenError(f"{path}: tokens", got=tokens, wanted=f"at most {what} {vocabulary}")


def check_sizes(path: Path, part: str, config: object) -> None:
    """Raise MmgenError where a number of a network's configuration is below one."""
    for name, value in vars(config).items():
        if any(isinstance(v, int) and v < 1 for v in (value if isinstance(value, tuple) else (value,))):
            raise MmgenError(f"{path}: {part}.{name}", got=value, wanted="1 or more")


def load_weights(path: Path, storage: Storage) -> dict[str, Tensor]:
    """Load the tensors of a checkpoint's file; those that were stored as int8 are float32."""
    tensors = load_safetensors(path)
    return int8.restore(tensors, str(path)) if storage == "int8" else tensors


def load_autoencoder(vqvae: VQVAE, path: Path) -> None:
    """Copy the weights of pictures' autoencoder from the file of another checkpoint."""
    load_strictly(nn.ModuleDict({AUTOENCODER: vqvae}), _autoencoder(path), str(path))


def _autoencoder(path: Path) -> dict[str, Tensor]:
    return {n: tensor for n, tensor in load_safetensors(path).items() if n.startswith(f"{AUTOENCODER}.")}


def check_shared(home: Path, vqvae: VQVAE, tokenizer: bytes | None = None) -> None:
    """Raise MmgenError unless an autoencoder, and a tokenizer if one is given, are those of another checkpoint."""
    own, stored = nn.ModuleDict({AUTOENCODER: vqvae}).state_dict(), _autoencoder(home / WEIGHTS)
    same = own.keys() == stored.keys() and all(torch.equal(t, own[n].to(t.dtype)) for n, t in stored.items())
    if not same or (tokenizer is not None and (home / TOKENIZER).read_bytes() != tokenizer):
        what = "tokenizer" if same else "autoencoder"
        raise MmgenError(f"the {what} is not the one in {home}", remedy="save without sharing it")


def stored_weights(parts: nn.ModuleDict, storage: Storage, matrices_of: Collection[str]) -> dict[str, Tensor]:
    """Convert the weights of modules to what is stored; as int8 the matrices of the parts ``matrices_of`` alone.

    Raises:
        MmgenError: a weight that is not finite in the type it is stored in.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in parts.state_dict().items():
        whole = storage == "int8" and name.partition(".")[0] in matrices_of
        tensors |= _stored(name, tensor.detach(), storage, whole)
    return tensors


def _stored(name: str, weight: Tensor, storage: Storage, whole: bool) -> dict[str, Tensor]:
    if whole and int8.is_stored(weight):
        stored = int8.store(name, weight.float())
    else:
        stored = {name: weight.to(torch.float32 if storage == "float32" else torch.float16).contiguous()}
    for tensor in stored.values():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MmgenError(
                f"tensor {name!r} is not finite as {tensor.dtype}", remedy="save as float32, or train again"
            )
    return stored


def write(
    folder: Path,
    record: Any,
    weights: Mapping[str, Mapping[str, Tensor]],
    others: Mapping[str, bytes],
    files: Callable[[Path], Mapping[str, Path]],
) -> None:
    """Write a checkpoint folder atomically, replacing one that is there.

    Args:
        folder: where to; its parent must exist.
        record: of ``config.json``; its field ``files`` is filled in.
        weights: tensors, by the name of a safetensors file.
        others: contents of other files, by name.
        files: where the files are of a checkpoint in some folder.
    """
    with whole_folder(followed(folder)) as partial:
        for name, tensors in weights.items():
            save_file(dict(tensors), partial / name)
        for name, content in others.items():
            (partial / name).write_bytes(content)
        hashes = {name: sha256(path) for name, path in files(partial).items()}
        text = json.dumps(to_json(dataclasses.replace(record, files=hashes)), indent=1)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
