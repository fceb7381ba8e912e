"""Format 2 of mmgen's checkpoints: an any-to-any network over the codes of pictures, sound, films and series."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model, Output
from mmgen.export.base.weights import files_sha256, load_safetensors, load_strictly
from mmgen.export.networks.any_to_any import AnyToAny, AnyToAnyConfig, Embed, Given, Made, Sense
from mmgen.export.networks.grouped_vqvae import GroupedVQVAE, GroupedVQVAEConfig, autoencoder_of
from mmgen.export.networks.quantiser import CodesDecoder
from mmgen.export.networks.vqvae import VQVAE, VQVAEConfig
from mmgen.export.sources.checkpoint.folder import (
    AUTOENCODER,
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Storage,
    check_hashes,
    check_shared,
    check_tokenizer,
    home,
    load_autoencoder,
    load_weights,
    located,
    read_record,
    stored_weights,
    write,
)
from mmgen.runtime.base.choices import did_you_mean
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Condition, Defaults, Media

FORMAT: Literal["mmgen-checkpoint/2"] = "mmgen-checkpoint/2"
NETWORK = "network"  # first part of the names of its weights; those of an autoencoder begin with its medium
EXAMPLES = "examples.safetensors"  # media (N, ...) of each input, half precision where they are fractions
TEXT, PICTURE = "text", "picture"


@dataclass(frozen=True)
class MadeRecord:
    """What one output makes, and of what."""

    media: Media
    defaults: Defaults
    inputs: tuple[str, ...]  # in the order of ``any_to_any.GIVEN``


@dataclass(frozen=True)
class AnyToAnyCheckpoint:
    """``config.json``.  Inputs and outputs are called as their media: text, picture, sound, film, series."""

    name: str
    licence: str
    network: AnyToAnyConfig
    picture: VQVAEConfig
    autoencoders: dict[str, GroupedVQVAEConfig]  # of the other outputs that are media
    inputs: dict[str, Media]  # that are media
    outputs: dict[str, MadeRecord]
    embeds: tuple[str, ...]  # inputs whose vectors can be compared
    texts: tuple[str, ...] = ()  # that are typical of use
    pad_id: int = 0
    storage: Storage = "float16"
    shared: str = ""  # a checkpoint next to this one, whose autoencoder of pictures this one uses
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 by name; written by ``save``
    format: Literal["mmgen-checkpoint/2"] = FORMAT


@dataclass(frozen=True)
class Parts:
    """The networks of a checkpoint."""

    network: AnyToAny
    picture: VQVAE
    autoencoders: dict[str, GroupedVQVAE]


class Channels(nn.Module):
    """Media as a model's modules have them, channels before time, to what a sense takes, and senses it."""

    def __init__(self, sense: Sense) -> None:
        super().__init__()
        self.sense = sense

    def forward(self, medium: Tensor) -> Tensor:
        match self.sense.name:
            case "sound":  # (B, 1, samples)
                medium = medium[:, 0]
            case "film":  # (B, 3, T, H, W)
                medium = medium.transpose(1, 2)
            case _:
                pass
        out: Tensor = self.sense(medium)
        return out


class Decoded(nn.Module):
    """Codes (B, N, G) to media, channels before time."""

    def __init__(self, autoencoder: GroupedVQVAE, name: str) -> None:
        super().__init__()
        self.autoencoder, self.name = autoencoder, name

    def forward(self, codes: Tensor) -> Tensor:
        autoencoder = self.autoencoder
        media = autoencoder.finished(autoencoder.decode(autoencoder.lookup(codes)))
        match self.name:
            case "sound":
                return media[:, None]
            case "film":
                return media.transpose(1, 2)
            case _:
                return media


class Flat(nn.Module):
    """``Made`` of texts, whose codes (R, length) have no second axis."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.made = made

    def forward(self, codes: Tensor, keys_values: Tensor, bias: Tensor, embedding: Tensor) -> Tensor:
        return self.made(codes[..., None], keys_values, bias, embedding)[..., 0]


def build(checkpoint: AnyToAnyCheckpoint) -> Parts:
    """Build the networks that a checkpoint describes."""
    frames = checkpoint.outputs["film"].media.shape[0] if "film" in checkpoint.outputs else 0
    channels = checkpoint.network.series_channels
    autoencoders = {n: autoencoder_of(n, c, frames, channels) for n, c in checkpoint.autoencoders.items()}
    return Parts(AnyToAny(checkpoint.network), VQVAE(checkpoint.picture), autoencoders)


def read(folder: Path) -> tuple[AnyToAnyCheckpoint, Parts]:
    """Read a checkpoint folder, in float32.

    Raises:
        MmgenError: a missing or damaged file, a wrong hash, an unknown format or field, weights that don't fit the
            configuration, parts that don't fit together.
    """
    checkpoint = read_record(folder, AnyToAnyCheckpoint, FORMAT)
    path = folder / CONFIG
    check_hashes(_files(checkpoint, folder), checkpoint.files)
    check_tokenizer(folder / TOKENIZER, checkpoint.network.vocabulary, "network.vocabulary")
    _check_names(checkpoint, path)
    try:
        parts = build(checkpoint)
    except (ArithmeticError, LookupError, RuntimeError, ValueError, TypeError) as error:  # impossible sizes
        raise MmgenError(f"{path} describes no network ({error})", remedy="save the checkpoint again") from error
    modules = _modules(checkpoint, parts)
    if checkpoint.shared:
        load_autoencoder(parts.picture, home(folder, checkpoint.shared) / WEIGHTS)
    load_strictly(modules, load_weights(folder / WEIGHTS, checkpoint.storage), str(folder / WEIGHTS))
    return checkpoint, parts


def load(folder: Path) -> Model:
    """Load the model of a checkpoint folder.

    Raises:
        MmgenError: as ``read``.
    """
    checkpoint, parts = read(folder)
    network, config = parts.network, checkpoint.network
    length = len(network.positions[TEXT])
    conditions = {TEXT: Condition(TEXT, "text", null="", length=length, pad_id=checkpoint.pad_id)}
    conditions |= {n: Condition(n, _kind(m), null=0.0, media=m) for n, m in checkpoint.inputs.items()}
    outputs, shared = {}, dict[tuple[str, ...], Given]()  # outputs of the same inputs have one module for them
    for name, made in checkpoint.outputs.items():
        codes = config.outputs[name]
        denoiser = Made(network, name)
        given = shared.setdefault(made.inputs, Given(network, made.inputs))
        outputs[name] = Output(
            process=Masked(codes=codes.codes, mask_id=codes.codes),
            latent_shape=codes.shape[:1] if name == TEXT else codes.shape,
            denoiser=Flat(denoiser) if name == TEXT else denoiser,
            media=made.media,
            defaults=made.defaults,
            decoder=_decoder(parts, name),
            inputs=made.inputs,
            condition=given,
            conditioning=("keys_values", "bias", "embedding"),
        )
    return Model(
        name=checkpoint.name,
        inputs=tuple(conditions[name] for name in conditions),
        outputs=outputs,
        encoders={name: Channels(Sense(network, name)) for name in checkpoint.inputs},
        embeds={name: Embed(network, name) for name in checkpoint.embeds},
        tokenizer=(folder / TOKENIZER).read_bytes(),
        examples=_examples(checkpoint, folder),
        licence=checkpoint.licence,
        source=f"mmgen checkpoint {checkpoint.name}",
        source_sha256=files_sha256(_files(checkpoint, folder).values()),
        versions={"torch": torch.__version__},
    )


def save(
    folder: Path, checkpoint: AnyToAnyCheckpoint, parts: Parts, tokenizer: bytes, examples: dict[str, Tensor]
) -> None:
    """Write a checkpoint folder atomically, replacing one that is there.

    Args:
        folder: where to; its parent must exist.
        checkpoint: what is known of the model, and what to store it as; ``files`` is filled in.
        parts: as ``checkpoint`` describes them.
        tokenizer: Hugging Face ``tokenizers`` JSON.
        examples: media (N, ...), as files hold them, of each input that is a medium.

    Raises:
        MmgenError: a weight that is not finite in the type it is stored in; an autoencoder that is not the one of the
            checkpoint it is to be shared with; the folder can't be written.
    """
    if checkpoint.shared:
        check_shared(home(folder, checkpoint.shared), parts.picture)
    weights = stored_weights(_modules(checkpoint, parts), checkpoint.storage, (NETWORK, *parts.autoencoders))
    halved = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in examples.items()}
    tensors = {WEIGHTS: weights, EXAMPLES: halved}
    write(folder, checkpoint, tensors, {TOKENIZER: tokenizer}, partial(_files, checkpoint))


def _files(checkpoint: AnyToAnyCheckpoint, folder: Path) -> dict[str, Path]:
    """Return all files but the configuration, by their names in ``files``."""
    shared = (WEIGHTS,) if checkpoint.shared else ()
    return located(folder, checkpoint.shared, (WEIGHTS, TOKENIZER, EXAMPLES), shared)


def _modules(checkpoint: AnyToAnyCheckpoint, parts: Parts) -> nn.ModuleDict:
    """Return the networks whose weights are in the checkpoint's own file."""
    own = {NETWORK: parts.network, **parts.autoencoders}
    return nn.ModuleDict(own if checkpoint.shared else own | {AUTOENCODER: parts.picture})


def _decoder(parts: Parts, name: str) -> nn.Module | None:
    if name == TEXT:
        return None
    if name == PICTURE:
        return CodesDecoder(parts.picture.decoder, parts.picture.codebook)
    return Decoded(parts.autoencoders[name], name)


def _kind(media: Media) -> Any:
    return media.kind


def _examples(checkpoint: AnyToAnyCheckpoint, folder: Path) -> tuple[dict[str, Any], ...]:
    media = load_safetensors(folder / EXAMPLES)
    examples: list[dict[str, Any]] = [{TEXT: text} for text in checkpoint.texts]
    for name, wanted in checkpoint.inputs.items():
        examples += [{name: each.numpy().astype(wanted.dtype)} for each in media.get(name, ())]
    return tuple(examples)


def _check_names(checkpoint: AnyToAnyCheckpoint, path: Path) -> None:
    """Check that what belongs together is there, by name."""
    network = checkpoint.network
    inputs, media = (TEXT, *checkpoint.inputs), ("sound", "film", "series")
    checks: Iterable[tuple[str, Iterable[str], Collection[str]]] = (
        ("inputs", checkpoint.inputs, (PICTURE, *media)),
        ("outputs", checkpoint.outputs, network.outputs),
        ("autoencoders", checkpoint.autoencoders, media),
        ("outputs that have an autoencoder", checkpoint.autoencoders, checkpoint.outputs),
        ("embeds", checkpoint.embeds, inputs),
        *((f"inputs of {name}", made.inputs, inputs) for name, made in checkpoint.outputs.items()),
    )
    for what, names, known in checks:
        for name in names:
            if name not in known:
                wanted, remedy = " or ".join(known), did_you_mean(name, known)
                raise MmgenError(f"{path}: {what}", got=repr(name), wanted=wanted, remedy=remedy)
    for name in checkpoint.outputs:
        if name in media and name not in checkpoint.autoencoders:
            raise MmgenError(f"{path}: autoencoders", got=f"none of {name}", wanted="one, since it is an output")
    if (shape := network.outputs.get(PICTURE)) and shape.codes != checkpoint.picture.codes:
        wanted = f"{shape.codes}, the network's"
        raise MmgenError(f"{path}: picture.codes", got=checkpoint.picture.codes, wanted=wanted)
    for name, config in checkpoint.autoencoders.items():
        wanted_shape, codes = network.outputs[name].shape, network.outputs[name].codes
        if (config.places, config.groups, config.codes) != (*wanted_shape, codes):
            got = f"{config.places} places, {config.groups} groups, {config.codes} codes"
            wanted = f"{wanted_shape[0]}, {wanted_shape[1]} and {codes}, the network's"
            raise MmgenError(f"{path}: autoencoders.{name}", got=got, wanted=wanted)
