"""mmgen's own checkpoint: a folder of ``config.json``, ``weights.safetensors`` and ``tokenizer.json``.

A text-conditional DiT over the latents of a VQ-VAE, or, where the process is masked, over its codes.  The writer and
the reader stand here together; nothing else knows the format.
"""

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmgen.export.dit import TextDiT, TextDiTConfig
from mmgen.export.model import Model
from mmgen.export.quantiser import CodesDecoder, CodesEncoder, Quantiser
from mmgen.export.token_dit import TokenDiT
from mmgen.export.vqvae import VQVAE, VQVAEConfig
from mmgen.export.weights import files_sha256, load_safetensors, load_strictly, read_json
from mmgen.runtime.bundle import Condition, Defaults, Media, from_json, sha256, to_json
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.process import Masked, Process

FAMILY = "mmgen-checkpoint/"
FORMAT: Literal["mmgen-checkpoint/1"] = "mmgen-checkpoint/1"
CONFIG, WEIGHTS, TOKENIZER = "config.json", "weights.safetensors", "tokenizer.json"


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


def load(folder: Path) -> Model:
    """The model of a checkpoint folder.

    Raises:
        MmgenError: a missing or damaged file, a wrong hash, an unknown format or field, weights that don't fit the
            configuration, parts that don't fit together.
    """
    checkpoint = _read_config(folder)
    vqvae, dit = _build(checkpoint, folder / CONFIG)
    both = nn.ModuleDict({"autoencoder": vqvae, "denoiser": dit})
    load_strictly(both, load_safetensors(folder / WEIGHTS), str(folder / WEIGHTS))
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
        tokenizer=(folder / TOKENIZER).read_bytes(),
        examples=tuple({"prompt": prompt} for prompt in checkpoint.examples),
        licence=checkpoint.licence,
        source=f"mmgen checkpoint {checkpoint.name}",
        source_sha256=files_sha256([folder / WEIGHTS, folder / TOKENIZER]),
        versions={"torch": torch.__version__},
    )


def save(
    folder: Path, checkpoint: Checkpoint, vqvae: VQVAE, dit: TextDiT | TokenDiT, tokenizer: bytes, *, half: bool = True
) -> None:
    """Write a checkpoint folder, replacing one that is there.

    Args:
        folder: where to; its parent must exist.
        checkpoint: what is known of the model; ``files`` is filled in.
        vqvae: as ``checkpoint.autoencoder`` describes it.
        dit: as ``checkpoint.denoiser`` describes it.
        tokenizer: Hugging Face ``tokenizers`` JSON.
        half: store float16, half the size; float32 otherwise.

    Raises:
        MmgenError: a weight that is not finite in the type it is stored in.
    """
    tensors = {}
    for name, tensor in nn.ModuleDict({"autoencoder": vqvae, "denoiser": dit}).state_dict().items():
        tensors[name] = tensor.detach().to(torch.float16 if half else torch.float32).contiguous()
        if not bool(torch.isfinite(tensors[name]).all()):
            raise MmgenError(
                f"tensor {name!r} is not finite as {tensors[name].dtype}", remedy="save with half=False, or train again"
            )
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    partial.mkdir()
    try:
        save_file(tensors, partial / WEIGHTS)
        (partial / TOKENIZER).write_bytes(tokenizer)
        files = {name: sha256(partial / name) for name in (WEIGHTS, TOKENIZER)}
        record = to_json(dataclasses.replace(checkpoint, files=files))
        (partial / CONFIG).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        old = partial.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    for name in (WEIGHTS, TOKENIZER):
        if not (folder / name).is_file():
            raise MmgenError(f"{folder / name} is missing", remedy="copy the whole checkpoint again")
        wanted, found = checkpoint.files.get(name), sha256(folder / name)
        if found != wanted:
            raise MmgenError(
                f"{folder / name}: sha256",
                got=found[:16],
                wanted=str(wanted)[:16],
                remedy="the file changed; copy the checkpoint again",
            )
    _check_fit(checkpoint, path)
    _check_tokenizer(folder / TOKENIZER, checkpoint.denoiser.vocabulary)
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
        tokens = Tokenizer.from_file(str(path)).get_vocab_size()
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
