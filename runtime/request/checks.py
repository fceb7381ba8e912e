"""Checks of a request: each attribute in its range, arrays of the right shape and type."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, said, shown
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.request.request import Request
from mmgen.runtime.request.tokens import checked_codes
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle
from mmgen.runtime.storage.tensors import RESCALE

STRENGTH = 0.8  # as in diffusers' image to image; with a mask everything behind it is regenerated


def checked_latents(bundle: Bundle, latents: object, batch: int) -> NDArray[Any]:
    """Check latents float32 (B, *L) of a bundle, or codes int64 (B, *L) of one that makes tokens.

    Raises:
        MmgenError: another shape or type, numbers that aren't finite, or that aren't codes.
    """
    shape, process = (batch, *bundle.latent_shape), bundle.process
    if isinstance(process, Masked):
        return checked_codes(latents, shape, process)
    return checked(latents, shape, "latents")


def checked(array: object, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """Check an array's type and shape, and that it is finite.

    Raises:
        MmgenError: another shape or type, or numbers that aren't finite.
    """
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
        raise MmgenError(name, got=said(array), wanted=f"float32 {shape}")
    if not np.isfinite(array).all():
        raise MmgenError(name, got="NaN or infinity", wanted="finite numbers")
    return array


def checked_request(bundle: Bundle, request: Request) -> Request:
    """Check each attribute except the conditions, and set the strength where there is an image or latents.

    Raises:
        MmgenError: one that is out of its range, or that this bundle can't use.
    """
    seed = whole("seed", request.seed, "a whole number from 0", 0)
    wanted = "0, which is none, to 1"
    rescale = real("guidance_rescale", request.guidance_rescale, wanted, lambda share: 0 <= share <= 1)
    if rescale and all(spec.name != RESCALE for spec in bundle.graphs["step"].inputs):
        raise MmgenError("this bundle can't rescale guidance", remedy="export it again, with Model.guidance_rescale")
    for name in ("solver", "sigmas"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, str):
            raise MmgenError(name, got=shown(value), wanted="a name")
    if not isinstance(request.resize, bool):
        raise MmgenError("resize", got=shown(request.resize), wanted="True or False")
    known: dict[str, Any] = {"seed": seed, "guidance_rescale": rescale}
    if request.guidance_interval is not None:
        known["guidance_interval"] = _checked_interval(request.guidance_interval)
    if request.deadline is not None:
        wanted = "seconds, more than 0"
        known["deadline"] = real("deadline", request.deadline, wanted, lambda seconds: 0 < seconds < math.inf)
    if request.image is not None and request.latents is not None:
        raise MmgenError("image and latents", remedy="give one of them: both are what to start from")
    if request.image is not None or request.latents is not None:
        usual = STRENGTH if request.mask is None else 1.0
        wanted = "more than 0, up to 1, which keeps next to nothing"
        strength = usual if request.strength is None else request.strength
        known["strength"] = real("strength", strength, wanted, lambda share: 0 < share <= 1)
    elif request.strength is not None:
        raise MmgenError("strength", got=shown(request.strength), wanted="an image or latents to start from")
    elif request.mask is not None:
        wanted = "an image or latents to start from"
        raise MmgenError("mask", got=said(request.mask), wanted=wanted, remedy=_of_that_name(bundle, "mask"))
    return replace(request, **known)


def _checked_interval(interval: object) -> tuple[float, float]:
    wanted = "(low, high), ratios of noise to data with 0 <= low < high"
    if isinstance(interval, np.ndarray) and interval.ndim:
        interval = list(interval)
    if isinstance(interval, (tuple, list)) and len(interval) == 2:
        low, high = (real("guidance_interval", end, wanted, lambda ratio: ratio >= 0) for end in interval)
        if low < high:
            return low, high
    raise MmgenError("guidance_interval", got=shown(interval), wanted=wanted)


def checked_media(bundle: Bundle, image: NDArray[Any], batch: int) -> NDArray[Any]:
    """Check media to start from and return (B, *shape): one for each sample, or one for all.

    Raises:
        MmgenError: another shape or type, or a bundle without an encoder.
    """
    if "encode" not in bundle.graphs:
        remedy = _of_that_name(bundle, "image") or "start from latents, or export with one"
        raise MmgenError("image: this bundle has no encoder, so it can't start from media", remedy=remedy)
    shape, dtype = bundle.media.shape, np.dtype(bundle.media.dtype)
    if not isinstance(image, np.ndarray) or image.dtype != dtype or image.shape[-len(shape) :] != shape:
        remedy = _of_that_name(bundle, "image") or "resize it"
        raise MmgenError("image", got=said(image), wanted=f"{dtype} {shape} or (B, *{shape})", remedy=remedy)
    if image.ndim == len(shape):
        image = image[None]
    if image.ndim != len(shape) + 1 or len(image) not in (1, batch):
        raise MmgenError("image", got=said(image), wanted=f"one, or one for each of {batch} samples")
    if dtype.kind == "f" and not np.isfinite(image).all():
        raise MmgenError("image", got="NaN or infinity", wanted="finite numbers")
    return np.ascontiguousarray(np.broadcast_to(image, (batch, *shape)))


def _of_that_name(bundle: Bundle, option: str) -> str | None:
    """Return the remedy if a condition was meant, where one has the name of an option."""
    there = any(condition.name == option for condition in bundle.conditions)
    return f"the condition of that name goes in conditions={{{option!r}: ...}}" if there else None
