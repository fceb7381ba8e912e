"""The state a run begins from: noise or masks, or given data, of which a mask may keep a part."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.request.noise import uniform
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle

MASKING = 0  # stream of the seed that says which tokens are masked at the start; evaluations use those from 1


@dataclass(frozen=True)
class Start:
    """The state that a plan starts from."""

    state: NDArray[Any]  # (B, *L) latents float32, or tokens int64 with masks
    keep: NDArray[np.bool_] | None = None  # (B, *L) where latents are kept; tokens are where they aren't masks
    known: NDArray[np.float32] | None = None  # (2, B, *L): this data, and the noise that is added to it


def of_latents(
    table: Table,
    noise: NDArray[np.float32],
    latents: NDArray[np.float32] | None = None,
    new: NDArray[np.bool_] | None = None,
    *,
    strength: float = 1.0,
) -> Start:
    """Build the start of a continuous process.

    Args:
        table: its ``initial_scale`` and first level count.
        noise: unit noise (B, *L).
        latents: data (B, *L) that is noised to the first evaluation's level; None: start from noise alone.
        new: (B, *L) where latents are regenerated, the rest being kept; at a strength of 1 from noise alone.
    """
    from_noise: NDArray[np.float32] = noise * np.float32(table.initial_scale)
    if latents is None:
        return Start(from_noise)
    noised: NDArray[np.float32] = table.level[0, 0] * latents + table.level[0, 1] * noise
    if new is None:
        return Start(noised)
    state = np.where(new, from_noise, noised) if strength == 1 else noised
    return Start(state, ~new, np.stack([latents, noise]))


def of_tokens(
    process: Masked,
    shape: tuple[int, ...],
    codes: NDArray[np.int64] | None = None,
    new: NDArray[np.bool_] | None = None,
    *,
    masked: float = 1.0,
    seed: int = 0,
) -> Start:
    """Build the start of a masked process.

    Args:
        shape: (B, *L).
        codes: int64 (B, *L) to start from; None: every position is masked.
        new: (B, *L) where codes are regenerated, the rest being kept.
        masked: without ``new``, the share of the codes that is masked, chosen by the uniform numbers of the seed.
    """
    if codes is None:
        return Start(np.full(shape, process.mask_id, np.int64))
    if new is None:
        new = uniform(seed, shape[0], shape[1:], MASKING) < masked
    return Start(np.where(new, process.mask_id, codes))


def regenerated(mask: object, bundle: Bundle, batch: int) -> NDArray[np.bool_]:
    """Return where latents are regenerated, bool (B, *L).

    Args:
        mask: bool, true where media are regenerated: pixels (H, W) or (B, H, W) of a picture, of which a
            position of the latents is regenerated if any of its pixels is; or of a shape that broadcasts to (B, *L).

    Raises:
        MmgenError: another shape or type; nothing that is regenerated; of tokens, a mask for each sample.
    """
    shape = (batch, *bundle.latent_shape)
    pixels = bundle.media.shape[:2] if bundle.media.kind == "image" else ()
    wanted = f"bool that broadcasts to {shape}" + (f", or {pixels} as pixels" if pixels else "")
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise MmgenError("mask", got=said(mask), wanted=wanted)
    given = mask
    if pixels and mask.shape[-2:] == pixels and mask.shape[:-2] in ((), (1,), (batch,)):
        given = _pooled(mask, shape[-2:])  # (h, w) or (B, h, w)
        if given.ndim == 3 and len(shape) == 4:
            given = given[:, None]  # (B, 1, h, w)
    try:
        new = np.broadcast_to(given, shape)
    except ValueError:
        raise MmgenError("mask", got=f"bool {mask.shape}", wanted=wanted) from None
    if not given.any():
        raise MmgenError("mask: nothing is to be regenerated", wanted="true at some positions")
    if isinstance(bundle.process, Masked) and given.ndim == len(shape) and not (given == given[0]).all():
        raise MmgenError("mask of a bundle that makes tokens", got="one for each sample", wanted="one for all samples")
    return new


def _pooled(pixels: NDArray[np.bool_], grid: tuple[int, ...]) -> NDArray[np.bool_]:
    """Pool (..., H, W) to (..., h, w): whether any pixel of a position is set.

    Raises:
        MmgenError: the grid doesn't divide the pixels.
    """
    (height, width), (h, w) = pixels.shape[-2:], grid
    if height % h or width % w:
        raise MmgenError(
            "mask", got=f"{height} x {width} pixels for {h} x {w} positions", wanted="a multiple",
            remedy="give a mask in the shape of the latents",
        )  # fmt: skip
    blocks = pixels.reshape(*pixels.shape[:-2], h, height // h, w, width // w)
    return np.asarray(blocks.any((-3, -1)))
