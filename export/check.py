"""Checks that a ``Model`` is what it says, in types, numbers and shapes, before the long work."""

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmgen.export.base.model import Model, modules
from mmgen.export.base.weights import check_finite
from mmgen.export.graphs.inputs import completed
from mmgen.export.graphs.latent import example
from mmgen.export.graphs.media import module_dtype, module_shape
from mmgen.runtime.base.choices import did_you_mean
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.request.nulls import null_array
from mmgen.runtime.solvers import masked
from mmgen.runtime.solvers.registry import table
from mmgen.runtime.storage.media_layouts import layout_text, layouts, misnamed_channels
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import CODES, MEDIA_KINDS, TOKENIZER, Media

PLAIN = r"[A-Za-z0-9_-]+"


def check(model: Model) -> Model:
    """Check a model by calling every part once, on one sample; return it with its inputs completed.

    Raises:
        MmgenError: a weight that is not a finite float32 on the CPU, a part that fails or gives another shape or type
            than ``Model`` says, a condition without what its kind needs, a solver that doesn't fit the process.
    """
    for name in ("process", "latent_shape", "denoiser", "media", "defaults"):
        if getattr(model, name) is None:
            raise MmgenError(f"model {model.name} has no {name}", remedy=f"give Model.{name}")
    _check_conditions(model)
    model = completed(model)
    for part, module in modules(model).items():
        _check_weights(f"{part} of {model.name}", module)
        module.eval()
    channels = model.guided_channels
    if channels is not None and isinstance(model.process, Masked):
        raise MmgenError("guided_channels", got=channels, wanted="None: all logits of a masked process are guided")
    if channels is not None and not 1 <= channels <= model.latent_shape[0]:
        raise MmgenError("guided_channels", got=channels, wanted=f"1 to {model.latent_shape[0]}, or None for all")
    defaults = model.defaults
    options = defaults.solver_options
    if isinstance(model.process, Masked):
        positions = math.prod(model.latent_shape)
        masked.table(defaults.solver, model.process, positions, defaults.steps, options=options)
        if model.quantiser is not None:
            raise MmgenError("a masked process with a quantiser", remedy="its decoder takes codes")
    else:
        table(defaults.solver, model.process, defaults.steps, sigmas=defaults.sigmas, options=options)
    with torch.no_grad():
        _check_denoiser(model)
        _check_media(model)
    return model


def weight_bytes(model: Model) -> int:
    """Count the bytes of all parameters and buffers."""
    tensors = {t.data_ptr(): t for module in modules(model).values() for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _check_conditions(model: Model) -> None:
    names = [c.name for c in model.conditions]
    for c in model.conditions:
        what = f"condition {c.name!r}"
        if not c.name.strip() or "=" in c.name or not c.name.isprintable():
            raise MmgenError(f"{what}: name", wanted="letters, with no '=', which follows the name on a command line")
        if names.count(c.name) > 1:
            raise MmgenError(f"{what} is defined twice", remedy="give each a name of its own")
        match c.kind:
            case "text" if c.length is None or c.length < 1:
                raise MmgenError(f"{what}: length", got=c.length, wanted="the number of tokens, at least 1")
            case "text" if model.tokenizer is None:
                raise MmgenError(f"{what} is text and the model has no tokenizer", remedy="give Model.tokenizer")
            case "text" if not isinstance(c.null, str | None):
                raise MmgenError(f"{what}: null", got=shown(c.null), wanted="a string, or None")
            case "class" if c.count is None or c.count < 1:
                raise MmgenError(f"{what}: count", got=c.count, wanted="the number of classes, at least 1")
            case "class" if c.null is not None:
                whole(f"{what}: null", c.null, "the number of the null class, or None")
            case "image" | "video" | "audio" | "series" if c.media is None or c.media.kind != c.kind:
                raise MmgenError(f"{what}: media", got=shown(c.media), wanted=f"Media of kind {c.kind!r}")
            case "array" if np.dtype(c.dtype).kind not in "fiub":
                raise MmgenError(f"{what}: dtype", got=c.dtype, wanted="floats, whole numbers or bool")
            case "array" if c.null is not None:
                null_array(c, c.null, f"{what}: null")
        if c.media is not None:
            _check_layout(what, c.media)
    known = {c.name: c for c in model.conditions}
    for field, named in (("encoders", model.encoders), ("embeds", model.embeds)):
        for name in named:
            if name not in known or (field == "encoders" and known[name].media is None):
                wanted = "an input" if field == "embeds" else f"an input of a medium: {', '.join(MEDIA_KINDS)}"
                raise MmgenError(f"{field}: name", got=shown(name), wanted=wanted, remedy=did_you_mean(name, known))
            if not re.fullmatch(PLAIN, name):
                wanted = "letters, digits, _ and -: it is part of a file's name"
                raise MmgenError(f"{field}: name", got=shown(name), wanted=wanted)
    if model.condition is not None and not model.conditioning:
        raise MmgenError(f"model {model.name} has a condition module and no names in conditioning")
    if model.defaults.guidance != 1 and not model.conditions:
        raise MmgenError("defaults: guidance", got=model.defaults.guidance, wanted="1: the model has no conditions")


def _check_weights(what: str, module: nn.Module) -> None:
    check_finite(module, what)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and (tensor.dtype, tensor.device.type) != (torch.float32, "cpu"):
            raise MmgenError(
                f"{what}: tensor {name!r}",
                got=f"{tensor.dtype} on {tensor.device.type}",
                wanted="torch.float32 on cpu",
                remedy="call .float().cpu() on the module",
            )


def _check_denoiser(model: Model) -> None:
    conditioning = [example(model, c, 1) for c in model.conditions]
    if model.condition is not None:
        made = _call("condition", model.condition, *conditioning)
        conditioning = [made] if isinstance(made, Tensor) else list(made)
        if len(conditioning) != len(model.conditioning):
            wanted = ", ".join(model.conditioning)
            raise MmgenError("condition: number of tensors", got=len(conditioning), wanted=wanted)
        for name, tensor in zip(model.conditioning, conditioning, strict=True):
            if tensor.ndim == 0 or len(tensor) != 1:
                raise MmgenError(f"condition: {name} for one sample", got=tuple(tensor.shape), wanted="(1, ...)")
    if isinstance(process := model.process, Masked):
        tokens = torch.full((1, *model.latent_shape), process.mask_id)
        timestep = [torch.zeros(1)] if process.train_timesteps else []
        logits = _call("denoiser", model.denoiser, tokens, *timestep, *conditioning)
        _want("denoiser", logits, (1, process.codes, *model.latent_shape), torch.float32)
        return
    out = _call("denoiser", model.denoiser, torch.zeros(1, *model.latent_shape), torch.ones(1), *conditioning)
    _want("denoiser", out, (1, *model.latent_shape), torch.float32)


def _check_media(model: Model) -> None:
    latents = torch.zeros(1, *model.latent_shape, dtype=torch.int64 if isinstance(model.process, Masked) else None)
    entries = latents
    if model.quantiser is not None:
        made = _call("quantiser", model.quantiser, latents)
        if not isinstance(made, tuple) or len(made) != 2 or made[1].dtype != torch.int64:
            raise MmgenError("quantiser: what it returns", wanted="(the decoder's input, int64 codes)")
        entries = made[0]
    media = model.media
    if media.rate is not None:
        real("media: rate", media.rate, "more than 0 a second", lambda rate: 0 < rate < math.inf)
    if media.range is not None and not _ascend(media.range):
        raise MmgenError("media: range", got=shown(media.range), wanted="the least and the largest value")
    _check_layout("media", media)
    if isinstance(process := model.process, Masked) and media.kind in CODES:
        _check_codes(model, process)
        return
    if model.decoder is None:
        raise MmgenError(f"model {model.name} has no decoder", remedy="give Model.decoder")
    shape, dtype = module_shape(media), module_dtype(media)
    _want("decoder", _call("decoder", model.decoder, entries), (1, *shape), None if dtype == torch.float32 else dtype)
    if model.encoder is not None:
        encoded = _call("encoder", model.encoder, torch.zeros(1, *shape, dtype=dtype))
        _want("encoder", encoded, (1, *model.latent_shape), latents.dtype)


def _check_codes(model: Model, process: Masked) -> None:
    """Check media that are the codes of a masked process: nothing decodes them."""
    media, what = model.media, f"media of kind {model.media.kind}"
    for part in ("decoder", "encoder"):
        if getattr(model, part) is not None:
            raise MmgenError(f"{what} with a module {part}: they are what the loop makes", remedy="leave it out")
    if (media.dtype, media.shape) != ("int64", model.latent_shape):
        wanted = f"int64 {model.latent_shape}, the latent_shape"
        raise MmgenError(what, got=f"{media.dtype} {media.shape}", wanted=wanted)
    if media.kind != "text":
        return
    if len(media.shape) != 1:
        raise MmgenError(what, got=f"int64 {media.shape}", wanted="int64 (length,)")
    if (model.tokenizer if media.tokenizer == TOKENIZER else model.tokenizers.get(media.tokenizer)) is None:
        raise MmgenError(f"{what} and no {media.tokenizer}", remedy="give Model.tokenizer")
    if media.end_id is not None:
        wanted = f"a token from 0 to {process.codes - 1}, not the mask"
        end = whole("media: end_id", media.end_id, wanted, 0, process.codes - 1)
        if end == process.mask_id:
            raise MmgenError("media: end_id", got=end, wanted=wanted)


def _check_layout(what: str, media: Media) -> None:
    """Check that media have the dtype and the axes of their kind."""
    if media.end_id is not None and media.kind != "text":
        raise MmgenError(f"{what} of kind {media.kind}: end_id", got=media.end_id, wanted="None: only a text ends")
    if media.kind not in MEDIA_KINDS:
        return
    found, wanted = layouts(media)
    if found != wanted:
        got = f"{media.dtype} {media.shape}"
        raise MmgenError(f"{what} of kind {media.kind}", got=got, wanted=layout_text(media))
    if name := misnamed_channels(media):
        raise MmgenError(f"{what}: {name}", got=shown(getattr(media, name)), wanted="one for each channel of a series")


def _ascend(ends: object) -> bool:
    """Whether these are two numbers, the first one less than the second."""
    if not isinstance(ends, (tuple, list)) or len(ends) != 2:
        return False
    least, largest = (real("media: range", end, "finite numbers") for end in ends)
    return least < largest


def _call(part: str, module: nn.Module, *inputs: Tensor) -> Any:
    try:
        return module(*inputs)
    except MmgenError:  # of an ONNX file, which says what it is about
        raise
    except Exception as error:
        shapes = ", ".join(f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in inputs)
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise MmgenError(f"{part} fails on ({shapes}): {reason}", remedy="check the model's shapes") from error


def _want(part: str, got: object, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    if not isinstance(got, Tensor):
        raise MmgenError(f"{part}: what it returns", got=type(got).__name__, wanted=f"one tensor {shape}")
    if tuple(got.shape) != shape or (dtype is not None and got.dtype != dtype):
        found, wanted = f"{got.dtype} {tuple(got.shape)}", f"{dtype or 'any type'} {shape}"
        raise MmgenError(f"{part}: what it returns", got=found, wanted=wanted)
