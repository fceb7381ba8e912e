"""A request, checked and laid out in a number of steps: everything that the graphs take."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.request import tokens
from mmgen.runtime.request.branches import FEWER, Branches, encode, read_branches
from mmgen.runtime.request.checks import checked, checked_latents, checked_media, checked_request
from mmgen.runtime.request.conditions import Inputs
from mmgen.runtime.request.noise import noise as seeded_noise
from mmgen.runtime.request.request import Request
from mmgen.runtime.request.start import Start, of_latents, of_tokens, regenerated
from mmgen.runtime.solvers.options import over_defaults
from mmgen.runtime.solvers.schedules import check_steps
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import MOST_STEPS, Bundle


@dataclass(frozen=True)
class Size:
    """What the memory layout depends on."""

    batch: int  # B
    guides: int  # G
    stochastic: tuple[bool, ...]  # (N,): evaluations that use noise
    alone: tuple[bool, ...]  # (N,): evaluations of the first branch alone, without guidance


@dataclass(frozen=True)
class Prepared:
    """A request for B samples in G branches and N evaluations."""

    bundle: Bundle
    request: Request  # checked
    branches: Branches
    noise: NDArray[np.float32]  # (B, *L) unit noise
    image: NDArray[Any] | None  # (B, *media shape) to start from, when it has been encoded
    latents: NDArray[Any] | None  # (B, *L) float32, or codes int64, to start from
    regenerate: NDArray[np.bool_] | None  # (B, *L) where these are not kept
    steps: int
    table: Any  # N rows: a Table, or a MaskedTable of a masked process
    rescale: NDArray[np.float32]  # (N,): share of the spread added by guidance that is taken back
    size: Size
    every: bool = False  # run every evaluation, also those that would change nothing

    @property
    def may_end_early(self) -> bool:
        """Whether evaluations that would change nothing are left out; which, shows when others have run."""
        masked = isinstance(self.bundle.process, Masked)
        return masked and not self.every and tokens.may_end_early(self.bundle, self.table)


def prepare(bundle: Bundle, inputs: Inputs, request: Request, fits: Callable[[Size], None]) -> Prepared:
    """Check a request and lay it out in the steps that it asks for.

    Args:
        inputs: the bundle's conditions.
        request: as ``read_request`` returns it.
        fits: raises where memory can't hold a request of a size; called before anything is allocated.

    Raises:
        MmgenError: something that the bundle can't do, or a request that memory can't hold.
    """
    if isinstance(bundle.process, Masked):
        tokens.refuse(request)
    request = checked_request(bundle, request)
    weight, what = request.guidance, "guidance"
    if weight is None:
        weight, what = bundle.defaults.guidance, "this bundle's default guidance"
    try:
        values = read_branches(
            inputs, request.conditions or {}, weight, request.count, request.negative, request.also, what=what,
            resize=request.resize,
        )
        steps = check_steps(bundle.defaults.steps if request.steps is None else request.steps)
        regenerate = None if request.mask is None else regenerated(request.mask, bundle, values.batch)
        table, rescale, size = _layout(bundle, request, values.batch, len(values.weights), regenerate, steps)
        fits(size)
        shape = (values.batch, *bundle.latent_shape)
        given = request.noise
        noise = seeded_noise(request.seed, shape[0], shape[1:]) if given is None else checked(given, shape, "noise")
        image = None if request.image is None else checked_media(bundle, request.image, values.batch)
        latents = None if request.latents is None else checked_latents(bundle, request.latents, values.batch)
        branches = encode(inputs, values)
    except MemoryError as error:
        raise MmgenError("the request is larger than the memory", remedy=FEWER) from error
    return Prepared(bundle, request, branches, noise, image, latents, regenerate, steps, table, rescale, size)


def in_steps(prepared: Prepared, steps: int) -> Prepared:
    """Lay the same request out in another number of steps, as a deadline asks for."""
    if steps == prepared.steps:
        return prepared
    batch, guides = prepared.size.batch, prepared.size.guides
    table, rescale, size = _layout(prepared.bundle, prepared.request, batch, guides, prepared.regenerate, steps)
    return replace(prepared, steps=steps, table=table, rescale=rescale, size=size)


def fewest_steps(bundle: Bundle, request: Request) -> int:
    """Return the fewest steps that a request can be made in.

    With fewer, the strength would leave none, or a block of tokens would have none.
    """
    strength = request.strength
    least = 1 if strength is None else math.ceil(min(1 / strength, 2 * MOST_STEPS) - 1e-9)
    masked = isinstance(bundle.process, Masked)
    return max(least, tokens.fewest_steps(bundle, request.solver, request.options)) if masked else least


def first_state(prepared: Prepared) -> Start:
    """Return what the first evaluation begins with; an image to start from must have been encoded."""
    process, request = prepared.bundle.process, prepared.request
    if isinstance(process, Masked):
        share = float(prepared.table.masked_before[0])
        shape = prepared.noise.shape
        return of_tokens(process, shape, prepared.latents, prepared.regenerate, masked=share, seed=request.seed)
    strength = 1.0 if request.strength is None else request.strength
    return of_latents(prepared.table, prepared.noise, prepared.latents, prepared.regenerate, strength=strength)


def noises(prepared: Prepared) -> dict[int, NDArray[np.float32]]:
    """Draw unit noise (B, *L) for the evaluations that use it, by index; of masked ones uniform (B, 2, *L)."""
    seed, table = prepared.request.seed, prepared.table
    if isinstance(prepared.bundle.process, Masked):
        return tokens.uniforms(seed, prepared.noise.shape, len(table))
    batch, *latent = prepared.noise.shape
    noisy = np.flatnonzero(table.stochastic)
    return {int(i): seeded_noise(seed, batch, tuple(latent), stream=int(i) + 1) for i in noisy}


def _layout(
    bundle: Bundle, request: Request, batch: int, guides: int, regenerate: NDArray[np.bool_] | None, steps: int
) -> tuple[Any, NDArray[np.float32], Size]:
    """Return the solver's table, the share of guidance's spread to take back in each evaluation, and the size."""
    begin = _begin(bundle, request, steps)
    if isinstance(bundle.process, Masked):
        positions = None if regenerate is None else regenerate[0].reshape(-1)
        table: Any = tokens.table_of(bundle, request.solver, steps, request.options, begin, positions)
        alone = np.zeros(len(table), bool)
        rescale = np.zeros(len(table), np.float32)
    else:
        table = _table(bundle, request, steps, begin)
        guided = np.full(len(table), guides > 1)
        if request.guidance_interval is not None:
            low, high = request.guidance_interval
            guided &= (table.noise_to_data > low) & (table.noise_to_data <= high)
        alone = ~guided if guides > 1 else guided
        rescale = np.where(guided, np.float32(request.guidance_rescale), np.float32(0))
    return table, rescale, Size(batch, guides, tuple(map(bool, table.stochastic)), tuple(map(bool, alone)))


def _table(bundle: Bundle, request: Request, steps: int, begin: int) -> Any:
    """Return the solver's table, of latents."""
    from mmgen.runtime.solvers import registry  # a dozen files, which a process for tokens doesn't need

    defaults = bundle.defaults
    own = request.solver in (None, defaults.solver)  # the bundle's sigmas are for its own solver alone
    sigmas = request.sigmas
    if sigmas is None:
        sigmas = defaults.sigmas if own else "schedule"
    return registry.table(
        defaults.solver if request.solver is None else request.solver,
        bundle.process,  # type: ignore[arg-type]  # of latents
        steps,
        sigmas=sigmas,  # type: ignore[arg-type]  # checked there
        options=over_defaults(defaults, request.solver, request.options),
        begin=begin,
    )


def _begin(bundle: Bundle, request: Request, steps: int) -> int:
    """Return how many steps the strength leaves out, as diffusers counts them."""
    strength = request.strength
    if strength is None:
        return 0
    run = min(int(steps * strength), steps)
    if run < 1:
        least = fewest_steps(bundle, request)
        more = "ask for" if least > MOST_STEPS else f"ask for at least {least} steps, or for"
        raise MmgenError(f"strength {strength:g} leaves none of {steps} steps", remedy=f"{more} more strength")
    return steps - run
