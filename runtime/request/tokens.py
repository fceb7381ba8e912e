"""A request for tokens: which of its options don't apply, and the table and random numbers of its evaluations."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.request.noise import uniform
from mmgen.runtime.request.request import Request
from mmgen.runtime.solvers.masked import MaskedTable, table
from mmgen.runtime.solvers.options import Option, over_defaults
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle

NOT_FOR_TOKENS = ("sigmas", "noise", "guidance_interval")


def refuse(request: Request) -> None:
    """Refuse an attribute that only requests for latents have.

    Raises:
        MmgenError: names it.
    """
    for name in NOT_FOR_TOKENS:
        value = getattr(request, name)
        if value is not None and not (isinstance(value, str) and (name, value) == ("sigmas", "schedule")):
            raise MmgenError(f"{name} is of latents, and this bundle makes tokens", remedy=f"leave {name} out")


def table_of(
    bundle: Bundle,
    solver: str | None,
    steps: int,
    options: Mapping[str, Option] | None,
    begin: int = 0,
    new: NDArray[np.bool_] | None = None,
) -> MaskedTable:
    """Build a request's table, of its solver or the bundle's default; the rest as ``masked.table`` takes it."""
    assert isinstance(bundle.process, Masked)
    defaults = bundle.defaults
    return table(
        defaults.solver if solver is None else solver, bundle.process, math.prod(bundle.latent_shape), steps,
        options=over_defaults(defaults, solver, options), begin=begin, new=new,
    )  # fmt: skip


def blocks(bundle: Bundle, solver: str | None, options: Mapping[str, Option] | None) -> int:
    """Return the number of blocks that positions are unmasked in, one after the other."""
    return int(over_defaults(bundle.defaults, solver, options).get("blocks", 1))


def uniforms(seed: int, shape: tuple[int, ...], count: int) -> dict[int, NDArray[np.float32]]:
    """Draw uniform numbers (B, 2, *L) for ``count`` evaluations, by index; index i uses stream i + 1 of the seed."""
    return {i: uniform(seed, shape[0], (2, *shape[1:]), i + 1) for i in range(count)}


def checked_codes(codes: object, shape: tuple[int, ...], process: Masked) -> NDArray[np.int64]:
    """Check that codes are valid input for the decoder.

    Raises:
        MmgenError: another shape or type, or a number that isn't a code.
    """
    codes = _int64("codes", codes, shape)
    if codes.min() < 0 or codes.max() >= process.codes:
        raise MmgenError("codes", got=f"{codes.min()} to {codes.max()}", wanted=f"0 to {process.codes - 1}")
    return codes


def checked_tokens(tokens: object, shape: tuple[int, ...], process: Masked) -> NDArray[np.int64]:
    """Check that tokens are valid input for an evaluation: codes, and masks where there is none yet.

    Raises:
        MmgenError: another shape or type, or a number that is neither.
    """
    tokens = _int64("tokens", tokens, shape)
    wrong = tokens[((tokens < 0) | (tokens >= process.codes)) & (tokens != process.mask_id)]
    if wrong.size:
        raise MmgenError("tokens", got=int(wrong[0]), wanted=f"0 to {process.codes - 1}, or {process.mask_id}, a mask")
    return tokens


def _int64(name: str, value: object, shape: tuple[int, ...]) -> NDArray[np.int64]:
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != np.int64:
        raise MmgenError(name, got=said(value), wanted=f"int64 {shape}")
    return value
