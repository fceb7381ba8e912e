"""A folder written by diffusers' ``DiTPipeline.save_pretrained`` as an ``export.Model``.

A DiT (Peebles & Xie 2023) over the latents of a VQModel (van den Oord et al.
2017; Esser et al. 2021) or an AutoencoderKL (Rombach et al. 2022).  What
pipeline_dit.py does around its modules is written down here once: classes,
guidance over all latent channels, the dropped half of a learned sigma, scaling.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgen.export.diffusers_parts import (
    AS_FLOAT,
    check_autoencoder,
    class_name,
    config_of,
    from_pretrained,
    import_library,
    want,
    weight_files,
)
from mmgen.export.diffusers_scheduler import from_scheduler_config
from mmgen.export.model import Model
from mmgen.export.quantiser import Quantiser
from mmgen.export.weights import files_sha256, read_json
from mmgen.runtime.bundle import Condition, Media
from mmgen.runtime.errors import MmgenError

# diffusers' own defaults, from the signature of DiTPipeline.__call__
STEPS, GUIDANCE = 50, 4.0

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is what facebook/DiT-* folders still say
AUTOENCODERS = ("VQModel", "AutoencoderKL")
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

    def __init__(self, autoencoder: Any, scaling_factor: float = 1.0, shift_factor: float = 0.0) -> None:
        super().__init__()
        self.post_quant_conv = autoencoder.post_quant_conv or nn.Identity()
        self.decoder = autoencoder.decoder
        self.unscale, self.shift = 1 / scaling_factor, shift_factor

    def forward(self, latents: Tensor) -> Tensor:
        pictures: Tensor = self.decoder(self.post_quant_conv(self.unscale * latents + self.shift))
        return pictures


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to scaled latents (B, C, h, w): before quantisation, or the posterior's mode."""

    def __init__(self, autoencoder: Any, channels: int, scaling_factor: float, shift_factor: float = 0.0) -> None:
        super().__init__()
        self.encoder = autoencoder.encoder
        self.quant_conv = autoencoder.quant_conv or nn.Identity()
        self.channels, self.scale, self.shift = channels, scaling_factor, shift_factor

    def forward(self, pictures: Tensor) -> Tensor:
        z: Tensor = self.quant_conv(self.encoder(pictures))[:, : self.channels]  # the other half is a log variance
        return (z - self.shift) * self.scale


def load(folder: Path) -> Model:
    """The model of a diffusers folder.

    Args:
        folder: holds ``model_index.json``, ``transformer``, ``vae`` and ``scheduler``.

    Raises:
        MmgenError: not a DiTPipeline, a component or a setting of it that isn't supported, parts that don't fit
            together, weights that are missing, damaged or not all there.
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
    process, defaults = from_scheduler_config(read_json(folder / "scheduler" / "scheduler_config.json"))
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
    files = [weight_files(folder / part) for part in ("transformer", "vae")]
    transformer = from_pretrained(transformer_class, folder / "transformer", files[0], **AS_FLOAT)
    autoencoder = from_pretrained(autoencoder_class, folder / "vae", files[1], **AS_FLOAT)

    quantiser = None
    if quantised:
        codebook = autoencoder.quantize.embedding.weight
        quantiser = Quantiser(codebook, torch.zeros(channels), torch.full((channels,), 1 / vae["scaling_factor"]))
    scale, shift = float(vae["scaling_factor"]), float(vae.get("shift_factor") or 0)
    latent_size, classes = dit["sample_size"], dit["num_embeds_ada_norm"]
    size = latent_size * 2 ** (len(vae["block_out_channels"]) - 1)
    return Model(
        name=folder.resolve().name,
        process=process,
        latent_shape=(channels, latent_size, latent_size),
        denoiser=Denoiser(transformer, channels),
        # LabelEmbedding has one row more than there are classes, for dropped labels; DiTPipeline says 1000 for it.
        conditions=(Condition("class_id", "class", null=classes, count=classes),),
        media=Media("image", (size, size, 3), "uint8", (0.0, 255.0)),
        defaults=dataclasses.replace(defaults, steps=STEPS, guidance=GUIDANCE),
        quantiser=quantiser,
        decoder=Decoder(autoencoder) if quantised else Decoder(autoencoder, scale, shift),
        encoder=Encoder(autoencoder, channels, scale, shift),
        source=folder.resolve().name,
        source_sha256=files_sha256([*files[0], *files[1]]),
        versions={"diffusers": diffusers.__version__, "torch": torch.__version__},
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
