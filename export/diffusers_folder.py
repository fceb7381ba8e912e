"""A folder written by diffusers' ``DiTPipeline.save_pretrained`` as an ``export.Model``.

A DiT (Peebles & Xie 2023) over the latents of a VQModel (van den Oord et al.
2017; Esser et al. 2021) or an AutoencoderKL (Rombach et al. 2022).  What
pipeline_dit.py does around its modules is written down here once: classes,
guidance over all latent channels, the dropped half of a learned sigma, scaling.
"""

import dataclasses
import inspect
import warnings
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mmgen.export.diffusers_scheduler import from_scheduler_config
from mmgen.export.model import Model
from mmgen.export.quantiser import Quantiser
from mmgen.export.weights import check_safetensors, files_sha256, read_json
from mmgen.runtime.bundle import Condition, Media
from mmgen.runtime.errors import MmgenError

# diffusers' own defaults, from the signature of DiTPipeline.__call__
STEPS, GUIDANCE = 50, 4.0

TRANSFORMERS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is what facebook/DiT-* folders still say
AUTOENCODERS = ("VQModel", "AutoencoderKL")
ACTIVATIONS = ("gelu", "gelu-approximate", "geglu", "geglu-approximate")
DOWN_BLOCKS, UP_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


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
    diffusers = _diffusers()
    _class_name(index, "transformer", TRANSFORMERS, folder)
    quantised = _class_name(index, "vae", AUTOENCODERS, folder) == "VQModel"
    transformer_class = diffusers.DiTTransformer2DModel
    autoencoder_class = diffusers.VQModel if quantised else diffusers.AutoencoderKL
    # Everything that can be judged without the weights comes before they are read.
    process, defaults = from_scheduler_config(read_json(folder / "scheduler" / "scheduler_config.json"))
    dit = _config(folder / "transformer", transformer_class)
    _check_transformer(dit, folder / "transformer")
    vae = _config(folder / "vae", autoencoder_class)
    _check_autoencoder(vae, folder / "vae")
    channels = vae.get("vq_embed_dim") or vae["latent_channels"]
    if dit["in_channels"] != channels:
        raise MmgenError(
            f"{folder}: transformer and vae don't fit together: transformer in_channels",
            got=dit["in_channels"],
            wanted=f"the {channels} latent channels of the vae",
        )
    files = [_weight_files(folder / part) for part in ("transformer", "vae")]
    transformer = _from_pretrained(transformer_class, folder / "transformer", files[0])
    autoencoder = _from_pretrained(autoencoder_class, folder / "vae", files[1])

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


def _diffusers() -> ModuleType:
    try:
        import diffusers
    except ImportError as error:
        raise MmgenError(f"diffusers can't be imported ({error})", remedy="pip install 'mmgen[export]'") from error
    return diffusers


def _class_name(index: dict[str, Any], part: str, supported: tuple[str, ...], folder: Path) -> str:
    entry = index.get(part)
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] != "diffusers" or entry[1] not in supported:
        raise MmgenError(
            f"{folder}/model_index.json: {part}",
            got=entry,
            wanted=" or ".join(f'["diffusers", "{name}"]' for name in supported),
            remedy="for other models write a module:function",
        )
    return str(entry[1])


def _config(folder: Path, kind: Any) -> dict[str, Any]:
    """``config.json`` with the class's own defaults where it is silent.

    Old folders carry settings of a larger class; one that is set to nothing is ignored, any other is an error.
    """
    record = read_json(folder / "config.json")
    known = {n: p.default for n, p in inspect.signature(kind.__init__).parameters.items() if n != "self"}
    for name, value in record.items():
        if name not in known and not name.startswith("_") and value not in (None, False, "default"):
            raise MmgenError(f"{folder}/config.json: {name} = {value!r} isn't supported for {kind.__name__}")
    return known | {name: value for name, value in record.items() if name in known}


def _want(config: dict[str, Any], field: str, ok: bool, wanted: str, folder: Path) -> None:
    if not ok:
        raise MmgenError(f"{folder}/config.json: {field}", got=repr(config[field]), wanted=wanted)


def _check_transformer(config: dict[str, Any], folder: Path) -> None:
    size, patch, channels = config["sample_size"], config["patch_size"], config["in_channels"]
    classes = config["num_embeds_ada_norm"]
    _want(config, "norm_type", config["norm_type"] == "ada_norm_zero", "'ada_norm_zero'", folder)
    _want(config, "num_embeds_ada_norm", type(classes) is int and classes > 0, "the number of classes", folder)
    _want(config, "activation_fn", config["activation_fn"] in ACTIVATIONS, " or ".join(ACTIVATIONS), folder)
    _want(config, "patch_size", type(patch) is int and patch > 0, "a positive number", folder)
    _want(config, "sample_size", type(size) is int and size % patch == 0, f"a multiple of patch_size {patch}", folder)
    wanted = f"{channels}, or {2 * channels} with a learned sigma"
    _want(config, "out_channels", config["out_channels"] in (None, channels, 2 * channels), wanted, folder)


def _check_autoencoder(config: dict[str, Any], folder: Path) -> None:
    channels, scale = config["block_out_channels"], config["scaling_factor"]
    ok = isinstance(channels, (list, tuple)) and len(channels) > 0 and all(type(n) is int and n > 0 for n in channels)
    _want(config, "block_out_channels", ok, "a list of positive numbers", folder)
    for field, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        ok = isinstance(config[field], (list, tuple)) and len(config[field]) == len(channels)
        ok = ok and all(kind in kinds for kind in config[field])
        _want(config, field, ok, f"{len(channels)} of {' or '.join(kinds)}, as many as block_out_channels", folder)
    for field in ("in_channels", "out_channels"):
        _want(config, field, config[field] == 3, "3 (pictures)", folder)
    _want(config, "scaling_factor", type(scale) in (int, float) and scale > 0, "a positive number", folder)
    for field, only in (("norm_type", "group"), ("latents_mean", None), ("latents_std", None)):
        if field in config:
            _want(config, field, config[field] == only, repr(only), folder)


def _weight_files(folder: Path) -> list[Path]:
    """The files diffusers will read: safetensors, in one piece or several; else a .bin in one piece."""
    whole = folder / "diffusion_pytorch_model.safetensors"
    index = folder / f"{whole.name}.index.json"
    if index.is_file():
        names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
        if outside := [name for name in names if PurePosixPath(name).name != name]:
            raise MmgenError(f"{index}: {outside[0]!r} leaves the folder", remedy="do not use this model")
        files = [folder / name for name in names]
    else:
        files = [whole] if whole.is_file() else [whole.with_suffix(".bin")]
    for file in files:
        if not file.is_file():
            raise MmgenError(
                f"{folder} has no {whole.name}" if len(files) == 1 else f"{file} is missing",
                remedy="copy the whole folder again",
            )
        if file.suffix == ".safetensors":
            check_safetensors(file)
        else:
            warnings.warn(
                f"{file} is a pickle: only its tensors are read, with torch's weights_only loader", stacklevel=4
            )
    return files


def _from_pretrained(kind: Any, folder: Path, files: list[Path]) -> Any:
    """A module with all of its weights, in float32; diffusers knows its own older names of them."""
    try:
        module, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=files[0].suffix == ".safetensors",
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # whatever it is, the folder can't be loaded
        raise MmgenError(
            f"{folder} can't be loaded by diffusers ({error})", remedy="check config.json, or copy the folder again"
        ) from error
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if names := report[problem]:
            raise MmgenError(
                f"{folder}: {problem.replace('_', ' ')}: {names[0]} and {len(names) - 1} more",
                remedy="the weights don't belong to this config.json",
            )
    return module
