"""A folder written by diffusers' ``DiTPipeline.save_pretrained`` as an ``export.Model``.

A DiT (Peebles & Xie 2023) over the latents of a VQModel (van den Oord et al.
2017; Esser et al. 2021) or an AutoencoderKL (Rombach et al. 2022).  What
pipeline_dit.py does around its modules is written down here once: classes,
guidance over all latent channels, the dropped half of a learned sigma, scaling;
and what it doesn't do, a shift of the latents or their statistics.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model
from mmgen.export.base.weights import files_sha256, read_json
from mmgen.export.networks.quantiser import Quantiser
from mmgen.export.sources.diffusers_parts import (
    AS_FLOAT,
    check_autoencoder,
    class_name,
    config_of,
    from_pretrained,
    import_library,
    name_and_source,
    want,
)
from mmgen.export.sources.diffusers_scheduler import from_scheduler_config
from mmgen.export.sources.weight_files import DIFFUSERS, weights_of
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import Condition, Media

# diffusers' own defaults, from the signature of DiTPipeline.__call__
STEPS, GUIDANCE = 50, 4.0

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is what facebook/DiT-* folders still say
AUTOENCODERS = ("VQModel", "AutoencoderKL")
UNAPPLIED = ("shift_factor", "latents_mean", "latents_std")  # of an AutoencoderKL's settings, by DiTPipeline
NULL_CLASS = 1000  # which DiTPipeline gives as no class to every model
ACTIVATIONS = ("gelu", "gelu-approximate", "geglu", "geglu-approximate")


class Denoiser(nn.Module):
    """x (R, C, H, W), timestep (R,), class_id int64 (R,) to (R, C, H, W); a learned sigma is dropped."""

    def __init__(self, transformer: nn.Module, channels: int) -> None:
        super().__init__()
        self.transformer, self.channels = transformer, channels

    def forward(self, x: Tensor, timestep: Tensor, class_id: Tensor) -> Tensor:
        out: Tensor = self.transformer(x, timestep, class_id, return_dict=False)[0]
        return out[:, : self.channels]


class Decoder(nn.Module):
    """(B, C, h, w) to pictures (B, 3, H, W) in [-1, 1], not clamped; codebook entries come in unscaled."""

    def __init__(self, autoencoder: Any, scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder
        self.unscale = 1 / scaling_factor

    def forward(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(self.post_quant_conv(self.unscale * latents))
        return pictures


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w): before quantisation, or the posterior's mode."""

    def __init__(self, autoencoder: Any, channels: int, scaling_factor: float) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv or nn.Identity()
        self.channels, self.scale = channels, scaling_factor

    def forward(self, pictures: Tensor) -> Tensor:
        z: Tensor = self.quant_conv(self.encoder(pictures))[:, : self.channels]  # the other half is a log variance
        return z * self.scale


def load(folder: Path, variant: str | None = None) -> Model:
    """Load the model of a diffusers folder.

    Args:
        folder: holds ``model_index.json``, ``transformer``, ``vae`` and ``scheduler``.
        variant: of the weights, as ``weights_of`` takes it.

    Raises:
        MmgenError: not a DiTPipeline, a component or a setting of it that isn't supported, parts that don't fit
            together, weights that are missing, damaged or incomplete.
    """
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "DiTPipeline":
        raise MmgenError(f"{folder}/model_index.json: _class_name", got=repr(index.get("_class_name")),
                         wanted="'DiTPipeline'", remedy="for other pipelines write a module:function")  # fmt: skip
    diffusers = import_library("diffusers")
    class_name(index, "transformer", TRANSFORMERS, folder)
    quantised = class_name(index, "vae", AUTOENCODERS, folder) == "VQModel"
    transformer_class = diffusers.DiTTransformer2DModel
    autoencoder_class = diffusers.VQModel if quantised else diffusers.AutoencoderKL
    # Everything that can be judged without the weights comes before they are read.
    process, defaults = from_scheduler_config(_scheduler(index, folder))
    dit = config_of(folder / "transformer", transformer_class)
    _check_transformer(dit, folder / "transformer")
    vae = config_of(folder / "vae", autoencoder_class)
    check_autoencoder(vae, folder / "vae")
    channels = vae.get("vq_embed_dim") or vae["latent_channels"]
    if dit["in_channels"] != channels:
        raise MmgenError(
            f"{folder}: transformer and vae don't fit together: transformer in_channels",
            got=dit["in_channels"],
            wanted=f"the {channels} latent channels of the vae",
        )
    _warn_of_differences(dit, vae, folder)
    weights = weights_of(folder, dict.fromkeys(("transformer", "vae"), DIFFUSERS), variant)
    transformer = from_pretrained(transformer_class, weights["transformer"], **AS_FLOAT)
    autoencoder = from_pretrained(autoencoder_class, weights["vae"], **AS_FLOAT)

    quantiser = None
    if quantised:
        codebook = autoencoder.quantize.embedding.weight
        quantiser = Quantiser(codebook, torch.zeros(channels), torch.full((channels,), 1 / vae["scaling_factor"]))
    scale = float(vae["scaling_factor"])
    name, source = name_and_source(folder)
    latent_size, classes = dit["sample_size"], dit["num_embeds_ada_norm"]
    size = latent_size * 2 ** (len(vae["block_out_channels"]) - 1)
    return Model(
        name=name,
        process=process,
        latent_shape=(channels, latent_size, latent_size),
        denoiser=Denoiser(transformer, channels),
        # LabelEmbedding has one row more than there are classes, for dropped labels.
        conditions=(Condition("class_id", "class", null=classes, count=classes),),
        media=Media("image", (size, size, 3), "uint8", (0.0, 255.0)),
        defaults=dataclasses.replace(defaults, steps=STEPS, guidance=GUIDANCE),
        quantiser=quantiser,
        decoder=Decoder(autoencoder) if quantised else Decoder(autoencoder, scale),
        encoder=Encoder(autoencoder, channels, scale),
        source=source,
        source_sha256=files_sha256(file for part in weights.values() for file in part.files),
        versions={"diffusers": diffusers.__version__, "torch": torch.__version__},
    )


def _scheduler(index: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read the scheduler's configuration, for the class that the index names, as the pipeline does."""
    match index.get("scheduler"):
        case ["diffusers", str(name)]:
            return read_json(folder / "scheduler" / "scheduler_config.json") | {"_class_name": name}
        case entry:
            wanted = 'a scheduler, such as ["diffusers", "DDIMScheduler"]'
            raise MmgenError(f"{folder}/model_index.json: scheduler", got=entry, wanted=wanted)


def _warn_of_differences(dit: dict[str, Any], vae: dict[str, Any], folder: Path) -> None:
    """Warn of settings that a reader of the files would expect to matter."""
    for field in UNAPPLIED:
        if vae.get(field):
            warnings.warn(
                f"{folder}/vae/config.json: {field} = {vae[field]} isn't applied, as DiTPipeline doesn't", stacklevel=3
            )
    if (classes := dit["num_embeds_ada_norm"]) > NULL_CLASS:
        warnings.warn(
            f"{folder}/transformer/config.json: {classes} classes, so guidance takes {classes} for no class, as in "
            f"training; DiTPipeline takes {NULL_CLASS}, which is one of them",
            stacklevel=3,
        )


def _check_transformer(config: dict[str, Any], folder: Path) -> None:
    size, patch, channels = config["sample_size"], config["patch_size"], config["in_channels"]
    classes = config["num_embeds_ada_norm"]
    want(config, "norm_type", config["norm_type"] == "ada_norm_zero", "'ada_norm_zero'", folder)
    want(config, "num_embeds_ada_norm", type(classes) is int and classes > 0, "the number of classes", folder)
    want(config, "activation_fn", config["activation_fn"] in ACTIVATIONS, " or ".join(ACTIVATIONS), folder)
    want(config, "patch_size", type(patch) is int and patch > 0, "a positive number", folder)
    want(config, "sample_size", type(size) is int and size % patch == 0, f"a multiple of patch_size {patch}", folder)
    wanted = f"{channels}, or {2 * channels} with a learned sigma"
    want(config, "out_channels", config["out_channels"] in (None, channels, 2 * channels), wanted, folder)
