"""Format 1 of mmgen's checkpoints: a text-conditional DiT over a VQ-VAE's latents or, where masked, over its codes.

Weights are stored as float32 or float16; or, with ``storage`` int8, as float16 except the denoiser's matrices, which
are stored as ``int8`` describes.  Whatever they are stored as, they are float32 when they are read.

A checkpoint may use the autoencoder and the tokenizer of another one, a folder next to its own, which ``shared`` names;
its own weights are then the denoiser's alone.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.base.weights import files_sha256, load_strictly
from mmgen.export.networks.dit import TextDiT, TextDiTConfig
from mmgen.export.networks.quantiser import CodesDecoder, CodesEncoder, Quantiser
from mmgen.export.networks.token_dit import TokenDiT
from mmgen.export.networks.vqvae import VQVAE, VQVAEConfig
from mmgen.export.sources.checkpoint.folder import (
    AUTOENCODER,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Storage,
    check_hashes,
    check_shared,
    check_sizes,
    check_tokenizer,
    home,
    load_autoencoder,
    load_weights,
    located,
    read_record,
    stored_weights,
    write,
)
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.process import Masked, Process
from mmgen.runtime.storage.schema import Condition, Defaults, Media

FORMAT: Literal["mmgen-checkpoint/1"] = "mmgen-checkpoint/1"
DENOISER = "denoiser"  # first part of the names of its weights


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
        load_autoencoder(vqvae, home(folder, checkpoint.shared) / WEIGHTS)
    else:
        parts[AUTOENCODER] = vqvae
    load_strictly(parts, load_weights(folder / WEIGHTS, checkpoint.storage), str(folder / WEIGHTS))
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
        tokenizer=(home(folder, checkpoint.shared) / TOKENIZER).read_bytes(),
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
    parts, others = nn.ModuleDict({DENOISER: dit}), {}
    if checkpoint.shared:
        check_shared(home(folder, checkpoint.shared), vqvae, tokenizer)
    else:
        parts[AUTOENCODER] = vqvae
        others = {TOKENIZER: tokenizer}
    weights = {WEIGHTS: stored_weights(parts, checkpoint.storage, (DENOISER,))}
    write(folder, checkpoint, weights, others, partial(_files, checkpoint))


def _files(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """Return all files but the configuration, by their names in ``Checkpoint.files``."""
    return located(folder, checkpoint.shared, (WEIGHTS,), (WEIGHTS, TOKENIZER))


def _read_config(folder: Path) -> Checkpoint:
    checkpoint = read_record(folder, Checkpoint, FORMAT)
    check_hashes(_files(checkpoint, folder), checkpoint.files)
    _check_fit(checkpoint, folder / CONFIG)
    tokenizer = home(folder, checkpoint.shared) / TOKENIZER
    check_tokenizer(tokenizer, checkpoint.denoiser.vocabulary, "denoiser.vocabulary")
    return checkpoint


def _check_fit(checkpoint: Checkpoint, path: Path) -> None:
    vae, dit = checkpoint.autoencoder, checkpoint.denoiser
    for part, config in (("autoencoder", vae), ("denoiser", dit)):
        check_sizes(path, part, config)
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


def _build(checkpoint: Checkpoint, path: Path) -> tuple[VQVAE, TextDiT | TokenDiT]:
    denoiser = TokenDiT if isinstance(checkpoint.process, Masked) else TextDiT
    try:
        return VQVAE(checkpoint.autoencoder), denoiser(checkpoint.denoiser)
    except (ArithmeticError, RuntimeError, ValueError, TypeError) as error:  # sizes that no network can have
        raise MmgenError(f"{path} describes no network ({error})", remedy="save the checkpoint again") from error
