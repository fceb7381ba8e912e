"""A request for tokens: which of its options don't apply, and the table and random numbers of its evaluations."""

import math
from collections.abc import Mapping
from numbers import Integral

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, said
from mmgen.runtime.request.noise import uniform
from mmgen.runtime.request.request import Request
from mmgen.runtime.solvers.masked import OFF, MaskedTable, table
from mmgen.runtime.solvers.options import Option, over_defaults
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle
from mmgen.runtime.storage.tensors import THRESHOLD

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
    rows = table(
        defaults.solver if solver is None else solver, bundle.process, math.prod(bundle.latent_shape), steps,
        options=over_defaults(defaults, solver, options), begin=begin, new=new,
    )  # fmt: skip
    if (rows.threshold < OFF).any() and all(spec.name != THRESHOLD for spec in bundle.graphs["step"].inputs):
        raise MmgenError("this bundle can't unmask by a threshold", remedy="export it again, or leave threshold out")
    return rows


def fewest_steps(bundle: Bundle, solver: str | None, options: Mapping[str, Option] | None) -> int:
    """Return the fewest steps that positions can be unmasked in, block by block."""
    given = over_defaults(bundle.defaults, solver, options)
    blocks, first = (given[name] if isinstance(given.get(name), Integral) else 1 for name in ("blocks", "first"))
    return int(blocks) - 1 + max(int(first), 1)


def may_end_early(bundle: Bundle, rows: MaskedTable) -> bool:
    """Whether a run of this table may leave out evaluations that would change nothing: ``masked_reference.play``."""
    return not rows.redraw.any() and (bundle.media.end_id is not None or bool((rows.threshold < OFF).any()))


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
