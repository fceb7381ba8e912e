"""Media as files hold them, and as a model's own modules take and return them."""

import torch
from torch import Tensor

from mmgen.runtime.storage.schema import Media


def module_shape(media: Media) -> tuple[int, ...]:
    """Return the shape, without the batch axis, that a model's modules have for media: channels first.

    Pictures are (3, height, width), films (3, frames, height, width), both float32 in [-1, 1]; sound is (channels,
    samples).  Everything else is as the media are.
    """
    match media.kind:
        case "image" | "video":
            return (3, *media.shape[:-1])
        case "audio":
            return (media.shape[1], media.shape[0])
        case _:
            return media.shape


def module_dtype(media: Media) -> torch.dtype:
    """Return the dtype that a model's modules have for media."""
    return torch.float32 if media.kind in ("image", "video") else dtype_of(media)


def dtype_of(media: Media) -> torch.dtype:
    """Return torch's dtype for media as they are."""
    dtype: torch.dtype = getattr(torch, media.dtype)
    return dtype


def to_module(x: Tensor, media: Media) -> Tensor:
    """Convert media (B, ...) as files hold them to what a module takes."""
    match media.kind:
        case "image" | "video":
            return x.float().movedim(-1, 1) / 127.5 - 1
        case "audio":
            return x.transpose(1, 2)
        case _:
            return x


def from_module(x: Tensor, media: Media) -> Tensor:
    """Convert what a module returned to media (B, ...) as files hold them; values out of range are clipped."""
    match media.kind:
        case "image" | "video":
            x = ((x / 2 + 0.5).clamp(0, 1) * 255).round().movedim(1, -1)
        case "audio":
            x = x.clamp(-1, 1).transpose(1, 2)
        case _:
            pass
    return x.to(dtype_of(media))
