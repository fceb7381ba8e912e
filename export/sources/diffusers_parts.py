"""The parts of a diffusers folder, read and checked: class names, configurations, weights."""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from mmgen.export.base.weights import files_sha256, read_json
from mmgen.export.sources.weight_files import Weights, laid_out
from mmgen.runtime.base.distribution import extra
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import Media

DOWN_BLOCKS, UP_BLOCKS = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")
AS_FLOAT = {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}  # options of diffusers' loaders


def import_library(name: str) -> ModuleType:
    """Import a package of the extra ``export``.

    Raises:
        MmgenError: it isn't installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MmgenError(f"{name} can't be imported ({error})", remedy=extra("export")) from error


def class_name(
    index: dict[str, Any], part: str, supported: tuple[str, ...], folder: Path, library: str = "diffusers"
) -> str:
    """Return the class that ``model_index.json`` gives a part, one of those that are supported."""
    entry = index.get(part)
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] != library or entry[1] not in supported:
        raise MmgenError(
            f"{folder}/model_index.json: {part}",
            got=entry,
            wanted=" or ".join(f'["{library}", "{name}"]' for name in supported),
            remedy="for other models write a module:function",
        )
    return str(entry[1])


def config_of(folder: Path, kind: Any, file: str = "config.json") -> dict[str, Any]:
    """Read a configuration, with the class's own defaults where it is silent.

    Old folders carry settings of a larger class; one that is unset is ignored, any other is an error.
    """
    record = read_json(folder / file)
    known = {n: p.default for n, p in inspect.signature(kind.__init__).parameters.items() if n != "self"}
    for name, value in record.items():
        if name not in known and not name.startswith("_") and value not in (None, False, "default"):
            raise MmgenError(f"{folder}/{file}: {name} = {value!r} isn't supported for {kind.__name__}")
    return known | {name: value for name, value in record.items() if name in known}


def want(config: dict[str, Any], field: str, ok: bool, wanted: str, folder: Path) -> None:
    """Raise MmgenError unless a field of a configuration is ``ok``."""
    if not ok:
        raise MmgenError(f"{folder}/config.json: {field}", got=repr(config[field]), wanted=wanted)


def from_pretrained(kind: Any, weights: Weights, **options: Any) -> Any:
    """Load a module of diffusers or transformers with all of its weights; they translate their own older names."""
    library = kind.__module__.partition(".")[0]
    with laid_out(weights) as folder:
        try:
            module, report = kind.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=weights.name.endswith(".safetensors"),
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # whatever it is, the folder can't be loaded
            why = str(error).replace(str(folder), str(weights.folder))
            remedy = "check config.json, or copy the folder again"
            raise MmgenError(f"{weights.folder} can't be loaded by {library} ({why})", remedy=remedy) from error
    for problem in ("missing_keys", "mismatched_keys", "unexpected_keys", "error_msgs"):
        if names := sorted(map(str, report[problem])):
            raise MmgenError(
                f"{weights.folder}: {problem.replace('_', ' ')}: {names[0]} and {len(names) - 1} more",
                remedy="the weights don't belong to this config.json",
            )
    return module


def check_autoencoder(config: dict[str, Any], folder: Path) -> None:
    """Raise MmgenError unless a VQModel's or AutoencoderKL's configuration is one of pictures that is supported."""
    channels, scale = config["block_out_channels"], config["scaling_factor"]
    ok = isinstance(channels, (list, tuple)) and len(channels) > 0 and all(type(n) is int and n > 0 for n in channels)
    want(config, "block_out_channels", ok, "a list of positive numbers", folder)
    for field, kinds in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        ok = isinstance(config[field], (list, tuple)) and len(config[field]) == len(channels)
        ok = ok and all(kind in kinds for kind in config[field])
        want(config, field, ok, f"{len(channels)} of {' or '.join(kinds)}, as many as block_out_channels", folder)
    for field in ("in_channels", "out_channels"):
        want(config, field, config[field] == 3, "3 (pictures)", folder)
    want(config, "scaling_factor", type(scale) in (int, float) and scale > 0, "a positive number", folder)
    if "norm_type" in config:
        want(config, "norm_type", config["norm_type"] == "group", "'group'", folder)


@dataclass(frozen=True)
class TokenParts:
    """The parts of a pipeline over codes with a CLIP text encoder, in float32."""

    transformer: Any
    vqvae: Any
    text_encoder: Any
    tokenizer: Any
    length: int  # tokens of a prompt


def token_parts(folder: Path, weights: Mapping[str, Weights], **kinds: Any) -> TokenParts:
    """Load the parts of a pipeline over codes.

    Args:
        folder: of the pipeline.
        weights: of each part.
        kinds: the classes of ``transformer``, ``vqvae`` and ``text_encoder``.

    Raises:
        MmgenError: weights that are incomplete, or a tokenizer that can't be read or that pads on the left.
    """
    transformer = from_pretrained(kinds["transformer"], weights["transformer"], **AS_FLOAT)
    vqvae = from_pretrained(kinds["vqvae"], weights["vqvae"], **AS_FLOAT)
    text_encoder = from_pretrained(kinds["text_encoder"], weights["text_encoder"], dtype=torch.float32)
    tokenizer = _clip_tokenizer(import_library("transformers"), folder / "tokenizer")
    # The pipelines pad prompts to what the tokenizer says, and fail where it says nothing or more than there is room.
    length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    return TokenParts(transformer, vqvae, text_encoder, tokenizer, length)


def _clip_tokenizer(transformers: Any, folder: Path) -> Any:
    """Load the tokenizer that a pipeline with a CLIP text encoder saves."""
    try:
        tokenizer = transformers.CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers has no error of its own for it
        raise MmgenError(f"{folder} can't be read as a tokenizer ({error})", remedy="copy the folder again") from error
    for side in ("padding_side", "truncation_side"):
        if (got := getattr(tokenizer, side)) != "right":
            raise MmgenError(f"{folder}/tokenizer_config.json: {side}", got=repr(got), wanted="'right', as CLIP has it")
    return tokenizer


def token_model(folder: Path, parts: TokenParts, weights: Mapping[str, Weights], side: int) -> dict[str, Any]:
    """Return the fields of a ``Model`` that pipelines over codes have in common.

    Args:
        folder: of the pipeline.
        parts: its parts.
        weights: of each part.
        side: positions along an axis of its latents.
    """
    name, source = name_and_source(folder)
    size = side * 2 ** (len(parts.vqvae.config.block_out_channels) - 1)
    packages = (import_library("diffusers"), import_library("transformers"), torch)
    return {
        "name": name,
        "latent_shape": (side, side),
        "media": Media("image", (size, size, 3), "uint8", (0.0, 255.0)),
        "tokenizer": parts.tokenizer.backend_tokenizer.to_str().encode(),
        "source": source,
        "source_sha256": files_sha256(file for part in weights.values() for file in part.files),
        "versions": {package.__name__: package.__version__ for package in packages},
    }


def name_and_source(folder: Path) -> tuple[str, str]:
    """Return the name of a folder's model and its origin; Hugging Face's cache names folders by revision."""
    path = folder.resolve()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        parts = repository.split("--")[1:]
        return parts[-1], f"{'/'.join(parts)}@{path.name}"
    return path.name, path.name
