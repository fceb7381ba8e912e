"""Sources of models: one function from what the user typed to a checked ``Model``."""

import dataclasses
from pathlib import Path

from mmgen.export.base import embedded
from mmgen.export.base.model import Model, modules
from mmgen.export.base.weights import check_finite, check_loaded, read_json, tensors_sha256
from mmgen.export.sources import (
    amused_folder,
    checkpoint,
    described,
    diffusers_folder,
    user_code,
    vq_diffusion_folder,
)
from mmgen.runtime.base.errors import MmgenError

ACCEPTED = (
    "nothing (the embedded default), an mmgen checkpoint folder (config.json), a diffusers DiTPipeline, "
    "AmusedPipeline or VQDiffusionPipeline folder (model_index.json), package.module:function, file.py:function, or an "
    "ONNX file with --describe"
)
INDEX = "model_index.json"  # of a diffusers folder
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf")


def resolve(
    source: str | None = None, *, variant: str | None = None, description: Path | None = None
) -> Model:
    """Load the model that a source names, in evaluation mode, and check its weights.

    Args:
        source: None for the embedded default; a folder; ``module:function``.  A folder wins over a module.
        variant: of a diffusers folder's weights, such as ``fp16``; None: those that are no variant, or the only one.
        description: of an ONNX file: a TOML file that says what it is.

    Raises:
        MmgenError: no such source, a source of no known kind, a damaged or unsupported model, weights without values,
            or NaN or infinity in them.
    """
    model = _load(source, variant) if description is None else _described(source, description)
    for role, module in modules(model).items():
        check_loaded(module, f"{role} of {model.name}")
    for role, module in modules(model).items():
        module.eval().requires_grad_(False)
        check_finite(module, f"{role} of {model.name}")
    if not model.source_sha256:
        model = dataclasses.replace(model, source_sha256=tensors_sha256(modules(model).values()))
    return model


def _described(source: str | None, description: Path) -> Model:
    if source is None or Path(source).suffix != ".onnx":
        raise MmgenError(f"{source or 'the embedded default'} needs no description", wanted="an ONNX file")
    return described.load(Path(source), description)


def _load(source: str | None, variant: str | None) -> Model:
    if source and (Path(source) / INDEX).is_file():
        return _load_pipeline(Path(source), variant)
    if variant:
        raise MmgenError(f"{source or 'the embedded default'} has no variants", wanted="a diffusers folder")
    if source is None:
        return checkpoint.load(embedded.folder(embedded.DEFAULT))
    path = Path(source)
    if path.is_dir():
        return _load_folder(path)
    if parts := user_code.split(source):
        model = user_code.load(*parts)
        return model if model.source else dataclasses.replace(model, source=source)
    if path.suffix == ".onnx":
        remedy = f"mmgen-export {source} --describe model.toml; docs/exporting.md shows one"
        what = f"{source} is a graph, which doesn't say what it is for"
        raise MmgenError(what, wanted="a description", remedy=remedy)
    if path.suffix in WEIGHTS:
        raise MmgenError(
            f"{source} is a file of weights, which doesn't say what network they belong to",
            wanted=ACCEPTED,
            remedy="load it in a function of your own and name that",
        )
    raise MmgenError(f"source {source!r} is neither a folder nor module:function", wanted=ACCEPTED)


def _load_pipeline(folder: Path, variant: str | None) -> Model:
    match read_json(folder / INDEX).get("_class_name"):
        case "AmusedPipeline":
            return amused_folder.load(folder, variant)
        case "VQDiffusionPipeline":
            return vq_diffusion_folder.load(folder, variant)
        case _:
            return diffusers_folder.load(folder, variant)


def _load_folder(folder: Path) -> Model:
    config = folder / "config.json"
    if config.is_file() and str(read_json(config).get("format", "")).startswith(checkpoint.FAMILY):
        return checkpoint.load(folder)
    if (folder / "bundle.json").is_file():
        raise MmgenError(f"{folder} is a bundle already", remedy=f"mmgen generate {folder}")
    raise MmgenError(f"folder {folder} holds no model that mmgen knows", wanted=ACCEPTED)
