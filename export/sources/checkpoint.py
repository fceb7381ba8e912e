"""mmgen's own checkpoint: a folder of ``config.json``, ``weights.safetensors`` and ``tokenizer.json``.

A text-conditional DiT over the latents of a VQ-VAE, or, where the process is masked, over its codes.  The writer and
the reader are both here; nothing else knows the format.

Weights are stored as float32 or float16; or, with ``storage`` int8, as float16 except the denoiser's matrices, which
are stored as ``int8`` describes.  Whatever they are stored as, they are float32 when they are read.

A checkpoint may use the autoencoder and the tokenizer of another one, a folder next to its own, which ``shared`` names;
its own weights are then the denoiser's alone.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.networks.dit import TextDiT, TextDiTConfig
from mmgen.export.networks.quantiser import CodesDecoder, CodesEncoder, Quantiser
from mmgen.export.networks.token_dit import TokenDiT
from mmgen.export.networks.vqvae import VQVAE, VQVAEConfig
from mmgen.export.sources import int8
from mmgen.export.sources.weights import files_sha256, load_safetensors, load_strictly, read_json
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import followed
from mmgen.runtime.files.folders import whole_folder
from mmgen.runtime.files.json_records import from_json, to_json
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.process import Masked, Process
from mmgen.runtime.storage.schema import Condition, Defaults, Media

FAMILY = "mmgen-checkpoint/"
FORMAT: Literal["mmgen-checkpoint/1"] = "mmgen-checkpoint/1"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "weights.safetensors", "tokenizer.json"
AUTOENCODER, DENOISER = "autoencoder", "denoiser"  # first parts of the names of weights
Storage = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class Checkpoint:
    """``config.json``."""

    name: str
    licence: str
    process: Process
    defaults: Defaults
    autoencoder: VQVAEConfig
    denoiser: TextDiTConfig  # of a masked process its latent_shape is that of the logits
    pad_id: int = 0  # the token that fills a prompt up to ``denoiser.text_length``
    examples: tuple[str, ...] = ()  # prompts typical of use
    storage: Storage = "float16"  # what weights are stored as
    shared: str = ""  # a checkpoint next to this one, whose autoencoder and tokenizer this one uses
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by name; written by ``save``
    format: Literal["mmgen-checkpoint/1"] = FORMAT


class Text(nn.Module):
    """prompt int64 (R, T) to (context (R, T, C),)."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, prompt: Tensor) -> tuple[Tensor]:
        return (self.text(prompt),)


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, D, h, w) of unit variance, not quantised."""

    mean: Tensor  # (D, 1, 1)
    std: Tensor

    def __init__(self, encoder: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        z: Tensor = self.encoder(pictures)
        return (z - self.mean) / self.std


def read(folder: Path) -> tuple[Checkpoint, VQVAE, TextDiT | TokenDiT]:
    """Read a checkpoint folder, in float32.

    Raises:
        MmgenError: a missing or damaged file, a wrong hash, an unknown format or field, weights that don't fit the
            configuration, parts that don't fit together.
    """
    checkpoint = _read_config(folder)
    vqvae, dit = _build(checkpoint, folder / CONFIG)
    parts = nn.ModuleDict({DENOISER: dit})
    if checkpoint.shared:
        shared = _home(checkpoint, folder) / WEIGHTS
        load_strictly(nn.ModuleDict({AUTOENCODER: vqvae}), _autoencoder(shared), str(shared))
    else:
        parts[AUTOENCODER] = vqvae
    tensors = load_safetensors(folder / WEIGHTS)
    if checkpoint.storage == "int8":
        tensors = int8.restore(tensors, str(folder / WEIGHTS))
    load_strictly(parts, tensors, str(folder / WEIGHTS))
    return checkpoint, vqvae, dit


def load(folder: Path) -> Model:
    """Load the model of a checkpoint folder.

    Raises:
        MmgenError: as ``read``.
    """
    checkpoint, vqvae, dit = read(folder)
    text = dit.text
    del dit.text  # it runs once a request, in a graph of its own
    config = checkpoint.autoencoder
    size = config.sample_size
    if isinstance(checkpoint.process, Masked):
        latent_shape: tuple[int, ...] = checkpoint.denoiser.latent_shape[1:]
        parts: dict[str, Any] = {
            "decoder": CodesDecoder(vqvae.decoder, vqvae.codebook),
            "encoder": CodesEncoder(vqvae.encoder, vqvae.codebook),
        }
    else:
        latent_shape = checkpoint.denoiser.latent_shape
        mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        parts = {
            "decoder": vqvae.decoder,
            "quantiser": Quantiser(vqvae.codebook, mean, std),
            "encoder": Encoder(vqvae.encoder, mean, std),
        }
    return Model(
        name=checkpoint.name,
        process=checkpoint.process,
        latent_shape=latent_shape,
        denoiser=dit,
        conditions=(
            Condition("prompt", "text", null="", length=checkpoint.denoiser.text_length, pad_id=checkpoint.pad_id),
        ),
        media=Media("image", (size, size, 3), "uint8", (0.0, 255.0)),
        defaults=checkpoint.defaults,
        **parts,
        condition=Text(text),
        conditioning=("context",),
        tokenizer=(_home(checkpoint, folder) / TOKENIZER).read_bytes(),
        examples=tuple({"prompt": prompt} for prompt in checkpoint.examples),
        licence=checkpoint.licence,
        source=f"mmgen checkpoint {checkpoint.name}",
        source_sha256=files_sha256(_files(checkpoint, folder).values()),
        versions={"torch": torch.__version__},
    )


def save(folder: Path, checkpoint: Checkpoint, vqvae: VQVAE, dit: TextDiT | TokenDiT, tokenizer: bytes) -> None:
    """Write a checkpoint folder atomically, replacing one that is there.

    Args:
        folder: where to; its parent must exist.
        checkpoint: what is known of the model, and what to store it as; ``files`` is filled in.
        vqvae: as ``checkpoint.autoencoder`` describes it.
        dit: as ``checkpoint.denoiser`` describes it.
        tokenizer: Hugging Face ``tokenizers`` JSON.

    Raises:
        MmgenError: a weight that is not finite in the type it is stored in; an autoencoder or a tokenizer that is not
            the one of the checkpoint it is to be shared with; the folder can't be written.
    """
    parts = nn.ModuleDict({DENOISER: dit})
    if checkpoint.shared:
        _check_shared(_home(checkpoint, folder), vqvae, tokenizer)
    else:
        parts[AUTOENCODER] = vqvae
    tensors: dict[str, Tensor] = {}
    for name, tensor in parts.state_dict().items():
        tensors |= _stored(name, tensor.detach(), checkpoint.storage)
    with whole_folder(followed(folder)) as partial:
        save_file(tensors, partial / WEIGHTS)
        if not checkpoint.shared:
            (partial / TOKENIZER).write_bytes(tokenizer)
        files = {name: sha256(path) for name, path in _files(checkpoint, partial).items()}
        record = to_json(dataclasses.replace(checkpoint, files=files))
        (partial / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _stored(name: str, weight: Tensor, storage: Storage) -> dict[str, Tensor]:
    if storage == "int8" and name.startswith(f"{DENOISER}.") and int8.is_stored(weight):
        stored = int8.store(name, weight.float())
    else:
        stored = {name: weight.to(torch.float32 if storage == "float32" else torch.float16).contiguous()}
    for tensor in stored.values():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise MmgenError(
                f"tensor {name!r} is not finite as {tensor.dtype}", remedy="save as float32, or train again"
            )
    return stored


def _home(checkpoint: Checkpoint, folder: Path) -> Path:
    """Return the folder of the autoencoder and the tokenizer: the checkpoint's own or, shared, one next to it."""
    shared = checkpoint.shared
    if shared and (Path(shared).name != shared or shared == ".."):
        raise MmgenError(f"{folder / CONFIG}: shared", got=repr(shared), wanted="the name of a folder next to this one")
    return folder.resolve().parent / shared if shared else folder


def _files(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """Return all files but the configuration, by their names in ``Checkpoint.files``."""
    home, prefix = _home(checkpoint, folder), f"{checkpoint.shared}/" if checkpoint.shared else ""
    return {WEIGHTS: folder / WEIGHTS, prefix + WEIGHTS: home / WEIGHTS, prefix + TOKENIZER: home / TOKENIZER}


def _autoencoder(path: Path) -> dict[str, Tensor]:
    """Load the autoencoder's tensors from a file, as they are stored."""
    return {n: tensor for n, tensor in load_safetensors(path).items() if n.startswith(f"{AUTOENCODER}.")}


def _check_shared(home: Path, vqvae: VQVAE, tokenizer: bytes) -> None:
    own, stored = nn.ModuleDict({AUTOENCODER: vqvae}).state_dict(), _autoencoder(home / WEIGHTS)
    same = own.keys() == stored.keys() and all(torch.equal(t, own[n].to(t.dtype)) for n, t in stored.items())
    if not same or (home / TOKENIZER).read_bytes() != tokenizer:
        what = "tokenizer" if same else "autoencoder"
        raise MmgenError(f"the {what} is not the one in {home}", remedy="save without sharing it")


def _read_config(folder: Path) -> Checkpoint:
    path = folder / CONFIG
    record = read_json(path)
    if record.get("format") != FORMAT:
        raise MmgenError(f"{path}: format", got=repr(record.get("format")), wanted=repr(FORMAT), remedy="update mmgen")
    try:
        checkpoint = from_json(Checkpoint, record, str(path))
    except MmgenError as error:
        raise MmgenError(
            error.what, got=error.got, wanted=error.wanted, remedy="update mmgen, or save the checkpoint again"
        ) from None
    for name, file in _files(checkpoint, folder).items():
        if not file.is_file():
            raise MmgenError(f"{file} is missing", remedy="copy the whole checkpoint again")
        wanted, found = checkpoint.files.get(name), sha256(file)
        if found != wanted:
            raise MmgenError(
                f"{file}: sha256",
                got=found[:16],
                wanted=str(wanted)[:16],
                remedy="the file changed; copy the checkpoint again",
            )
    _check_fit(checkpoint, path)
    _check_tokenizer(_home(checkpoint, folder) / TOKENIZER, checkpoint.denoiser.vocabulary)
    return checkpoint


def _check_fit(checkpoint: Checkpoint, path: Path) -> None:
    vae, dit = checkpoint.autoencoder, checkpoint.denoiser
    for part, config in (("autoencoder", vae), ("denoiser", dit)):
        for name, value in vars(config).items():
            if any(isinstance(v, int) and v < 1 for v in (value if isinstance(value, tuple) else (value,))):
                raise MmgenError(f"{path}: {part}.{name}", got=value, wanted="1 or more")
    process, features = checkpoint.process, vae.code_dim
    if isinstance(process, Masked):
        features = vae.codes
        if (process.codes, process.mask_id) != (vae.codes, vae.codes):
            got = f"{process.codes} codes, mask {process.mask_id}"
            raise MmgenError(f"{path}: process", got=got, wanted=f"{vae.codes} codes, mask {vae.codes}")
    shape = (features, vae.sample_size // 4, vae.sample_size // 4)
    if dit.latent_shape != shape:
        raise MmgenError(f"{path}: denoiser.latent_shape", got=dit.latent_shape, wanted=f"{shape}, the autoencoder's")
    for name in ("latents_mean", "latents_std"):
        if (found := len(getattr(vae, name))) != vae.code_dim:
            wanted = f"one for each of {vae.code_dim} channels"
            raise MmgenError(f"{path}: autoencoder.{name}", got=f"{found} numbers", wanted=wanted)
    for name, value, divisor in (
        ("width", dit.width, "heads"),
        ("text_width", dit.text_width, "text_heads"),
        ("latent_shape", dit.latent_shape[1], "patch"),
    ):
        if value % (by := getattr(dit, divisor)):
            raise MmgenError(f"{path}: denoiser.{name}", got=value, wanted=f"a multiple of {divisor} {by}")


def _check_tokenizer(path: Path, vocabulary: int) -> None:
    try:
        tokens = Tokenizer.from_buffer(path.read_bytes()).get_vocab_size()
    except Exception as error:  # the library raises nothing more specific
        raise MmgenError(f"{path} is not a tokenizer ({error})", remedy="save the checkpoint again") from error
    if tokens > vocabulary:
        raise MmgenError(f"{path}: tokens", got=tokens, wanted=f"at most denoiser.vocabulary {vocabulary}")


def _build(checkpoint: Checkpoint, path: Path) -> tuple[VQVAE, TextDiT | TokenDiT]:
    denoiser = TokenDiT if isinstance(checkpoint.process, Masked) else TextDiT
    try:
        return VQVAE(checkpoint.autoencoder), denoiser(checkpoint.denoiser)
    except (ArithmeticError, RuntimeError, ValueError, TypeError) as error:  # sizes that no network can have
        raise MmgenError(f"{path} describes no network ({error})", remedy="save the checkpoint again") from error
