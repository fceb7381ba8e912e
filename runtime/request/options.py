"""What a request asks for, checked before anything runs; and what that is in rows of a solver's table."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.choices import near
from mmgen.runtime.base.errors import MmgenError, said, shown
from mmgen.runtime.base.numbers import real, whole
from mmgen.runtime.request import tokens as masked_request
from mmgen.runtime.request.branches import Also, Branches, ask, by_name, encoded, unknown
from mmgen.runtime.request.conditions import Inputs
from mmgen.runtime.request.noise import noise as seeded_noise
from mmgen.runtime.request.start import Start, made_anew, of_latents, of_tokens
from mmgen.runtime.solvers.options import Option, over_defaults
from mmgen.runtime.solvers.schedules import check_steps
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import MOST_STEPS, Bundle
from mmgen.runtime.storage.tensors import RESCALE

ELSEWHERE = {  # arguments that diffusers' pipelines call otherwise
    "num_inference_steps": "steps", "guidance_scale": "guidance", "num_images_per_prompt": "count", "generator": "seed",
    "scheduler": "solver", "negative_prompt": "negative", "mask_image": "mask",
}  # fmt: skip
STRENGTH = 0.8  # as diffusers' image to image; with a mask everything behind it is made anew


@dataclass(frozen=True)
class Options:
    """Arguments of ``generate`` but for the conditions; ``Generator.generate`` says what each is."""

    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    solver: str | None = None
    sigmas: str | None = None
    options: Mapping[str, Option] | None = None
    count: int | None = None
    noise: NDArray[np.float32] | None = None
    negative: Mapping[str, object] | None = None
    also: Sequence[Also] = ()
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    image: NDArray[Any] | None = None
    latents: NDArray[np.float32] | None = None
    strength: float | None = None
    mask: NDArray[np.bool_] | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class Size:
    """What decides a plan."""

    batch: int  # B
    guides: int  # G
    stochastic: tuple[bool, ...]  # for each row of the table, whether it uses noise
    alone: tuple[bool, ...]  # for each row, whether it runs the first branch alone


@dataclass(frozen=True)
class Course:
    """A request in a number of steps: N rows, B samples, G branches."""

    steps: int
    table: Any  # Table, or MaskedTable of a masked process
    alone: tuple[bool, ...]  # (N,): rows that run what is asked alone, without guidance
    rescale: NDArray[np.float32]  # (N,): share of guidance's own spread that is taken back

    def size(self, batch: int, guides: int) -> Size:
        """What decides the plan, for B samples in G branches."""
        return Size(batch, guides, tuple(map(bool, self.table.stochastic)), self.alone)


@dataclass(frozen=True)
class Request:
    """A request, checked."""

    bundle: Bundle
    options: Options
    asked: Branches
    noise: NDArray[np.float32]  # (B, *L) unit noise
    steps: int
    image: NDArray[Any] | None = None  # (B, *media shape)
    latents: NDArray[Any] | None = None  # (B, *L) float32, or codes int64
    new: NDArray[np.bool_] | None = None  # (B, *L) where these are not kept
    courses: dict[int, Course] = field(default_factory=dict)  # made so far

    @property
    def least(self) -> int:
        """The fewest steps that this can be done in."""
        return _least(self.bundle, self.options)

    def course(self, steps: int) -> Course:
        """Its rows in so many steps."""
        if steps not in self.courses:
            self.courses[steps] = _course(self.bundle, self.options, len(self.asked.weights), self.new, steps)
        return self.courses[steps]

    def start(self, table: Any, latents: NDArray[Any] | None) -> Start:
        """Where its rows begin, given the latents or codes (B, *L) that it starts from."""
        process, strength = self.bundle.process, self.options.strength
        if isinstance(process, Masked):
            shape, seed = self.noise.shape, self.options.seed
            return of_tokens(process, shape, latents, self.new, hidden=float(table.hidden[0]), seed=seed)
        return of_latents(table, self.noise, latents, self.new, strength=1.0 if strength is None else strength)

    def noises(self, table: Any) -> dict[int, NDArray[np.float32]]:
        """Unit noise (B, *L) of the rows that use it; of a masked process, uniform numbers (B, 2, *L)."""
        if isinstance(self.bundle.process, Masked):
            return masked_request.uniforms(self.options.seed, self.noise.shape, len(table))
        batch, *latent = self.noise.shape
        rows = np.flatnonzero(table.stochastic)
        return {int(row): seeded_noise(self.options.seed, batch, tuple(latent), stream=int(row) + 1) for row in rows}


def check(
    bundle: Bundle,
    inputs: Inputs,
    options: Options,
    conditions: Mapping[str, object] | None,
    named: Mapping[str, object],
    fits: Callable[[Size], None],
) -> Request:
    """Check a request.

    Args:
        inputs: the bundle's conditions.
        conditions: what is asked, by condition name.
        named: the same, for those that were arguments of their own.
        fits: raises where memory doesn't hold a request; it is asked before anything of one is laid out.

    Raises:
        MmgenError: a bad argument, or a request that memory doesn't hold.
    """
    if isinstance(bundle.process, Masked):
        masked_request.refuse(options)
    given = _gathered(bundle, inputs, options, conditions, named)
    options = _checked_options(bundle, options)
    defaults, weight, what = bundle.defaults, options.guidance, "guidance"
    if weight is None:
        weight, what = defaults.guidance, "this bundle's default guidance"
    try:
        asked = ask(inputs, given, weight, options.count, options.negative, options.also, what=what)
        steps = check_steps(defaults.steps if options.steps is None else options.steps)
        new = None if options.mask is None else made_anew(options.mask, bundle, asked.batch)
        course = _course(bundle, options, len(asked.weights), new, steps)
        fits(course.size(asked.batch, len(asked.weights)))
        shape = (asked.batch, *bundle.latent_shape)
        noise = options.noise
        noise = seeded_noise(options.seed, shape[0], shape[1:]) if noise is None else checked(noise, shape, "noise")
        image = None if options.image is None else _media(bundle, options.image, asked.batch)
        latents = None if options.latents is None else checked_latents(bundle, options.latents, asked.batch)
        made = encoded(inputs, asked)
    except MemoryError as error:
        raise MmgenError("the request is larger than the memory", remedy="ask for fewer samples at once") from error
    return Request(bundle, options, made, noise, steps, image, latents, new, {steps: course})


def _least(bundle: Bundle, options: Options) -> int:
    """The fewest steps: below, the strength leaves none, or a block of tokens has none."""
    strength = options.strength
    least = 1 if strength is None else math.ceil(min(1 / strength, 2 * MOST_STEPS) - 1e-9)
    masked = isinstance(bundle.process, Masked)
    return max(least, masked_request.blocks(bundle, options.solver, options.options)) if masked else least


def _course(bundle: Bundle, options: Options, guides: int, new: NDArray[np.bool_] | None, steps: int) -> Course:
    """The rows of a request for G branches in so many steps."""
    defaults, process, begin = bundle.defaults, bundle.process, _begin(bundle, options, steps)
    if isinstance(process, Masked):
        places = None if new is None else new[0].reshape(-1)
        rows = masked_request.rows(bundle, options.solver, steps, options.options, begin, places)
        return Course(steps, rows, (False,) * len(rows), np.zeros(len(rows), np.float32))
    own = options.solver in (None, defaults.solver)  # the sigmas beside the solver are for that solver alone
    sigmas = options.sigmas
    if sigmas is None:
        sigmas = defaults.sigmas if own else "schedule"
    from mmgen.runtime.solvers import (
        registry as solvers,
    )  # a dozen files; a process for tokens, or that only reads bundles, needs none

    table = solvers.table(
        defaults.solver if options.solver is None else options.solver,
        process,
        steps,
        sigmas=sigmas,  # type: ignore[arg-type]  # checked there
        options=over_defaults(defaults, options.solver, options.options),
        begin=begin,
    )
    guided = np.full(len(table), guides > 1)
    if options.guidance_interval is not None:
        low, high = options.guidance_interval
        guided &= (table.noise_to_data > low) & (table.noise_to_data <= high)
    alone = ~guided if guides > 1 else guided
    rescale = np.where(guided, np.float32(options.guidance_rescale), np.float32(0))
    return Course(steps, table, tuple(map(bool, alone)), rescale)


def _begin(bundle: Bundle, options: Options, steps: int) -> int:
    """How many steps the strength leaves out, as diffusers counts them."""
    strength = options.strength
    if strength is None:
        return 0
    run = min(int(steps * strength), steps)
    if run < 1:
        least = _least(bundle, options)
        more = "ask for" if least > MOST_STEPS else f"ask for at least {least} steps, or for"
        raise MmgenError(f"strength {strength:g} leaves none of {steps} steps", remedy=f"{more} more strength")
    return steps - run


def checked_latents(bundle: Bundle, latents: object, batch: int) -> NDArray[Any]:
    """Latents float32 (B, *L) of a bundle, or codes int64 (B, *L) of one that makes tokens.

    Raises:
        MmgenError: another shape or type, numbers that aren't finite or no codes.
    """
    shape, process = (batch, *bundle.latent_shape), bundle.process
    if isinstance(process, Masked):
        return masked_request.checked_codes(latents, shape, process)
    return checked(latents, shape, "latents")


def checked(array: object, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """An array as it must be.

    Raises:
        MmgenError: another shape or type, or numbers that aren't finite.
    """
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
        raise MmgenError(name, got=said(array), wanted=f"float32 {shape}")
    if not np.isfinite(array).all():
        raise MmgenError(name, got="NaN or infinity", wanted="finite numbers")
    return array


def _gathered(
    bundle: Bundle, inputs: Inputs, options: Options, conditions: object, named: Mapping[str, object]
) -> dict[str, object]:
    """What is asked by condition name, both from a dictionary and from keywords."""
    given = dict(by_name(inputs, {} if conditions is None else conditions, "conditions"))
    for name, value in named.items():
        if name not in inputs:
            raise _no_argument(bundle, inputs, options, name)
        if name in given:
            raise MmgenError(f"condition {name!r} is given twice", remedy="leave it out of conditions")
        given[name] = value
    return given


def _no_argument(bundle: Bundle, inputs: Inputs, options: Options, name: str) -> MmgenError:
    """The error about a keyword that is neither an option nor a condition."""
    from mmgen.runtime.solvers.registry import options_of

    what = f"unknown argument {shown(name)}"
    solver = bundle.defaults.solver if options.solver is None else options.solver
    if name in {f.name for f in fields(options_of(solver, bundle.process))}:
        return MmgenError(what, remedy=f"it is an option of solver {solver!r}: options={{{name!r}: ...}}")
    if name == "cancel":
        return MmgenError(what, remedy="a stream has a method cancel")
    meant = ELSEWHERE.get(name) or near(name, [*inputs, *(f.name for f in fields(Options)), "conditions", "cancel"])
    if meant is None or meant in inputs:
        return unknown(inputs, name)
    return MmgenError(what, remedy=f"did you mean {meant!r}?")


def _checked_options(bundle: Bundle, options: Options) -> Options:
    """The options, each in its range, and with a strength where there is something to start from."""
    seed = whole("seed", options.seed, "a whole number from 0", 0)
    wanted = "0, which is none, to 1"
    rescale = real("guidance_rescale", options.guidance_rescale, wanted, lambda share: 0 <= share <= 1)
    if rescale and all(spec.name != RESCALE for spec in bundle.graphs["step"].inputs):
        raise MmgenError("this bundle can't rescale guidance", remedy="export it again, with Model.guidance_rescale")
    for name in ("solver", "sigmas"):
        value = getattr(options, name)
        if value is not None and not isinstance(value, str):
            raise MmgenError(name, got=shown(value), wanted="a name")
    known: dict[str, Any] = {"seed": seed, "guidance_rescale": rescale}
    if options.guidance_interval is not None:
        known["guidance_interval"] = _checked_interval(options.guidance_interval)
    if options.deadline is not None:
        wanted = "seconds, more than 0"
        known["deadline"] = real("deadline", options.deadline, wanted, lambda seconds: 0 < seconds < math.inf)
    if options.image is not None and options.latents is not None:
        raise MmgenError("image and latents", remedy="give one of them: both are what to start from")
    if options.image is not None or options.latents is not None:
        usual = STRENGTH if options.mask is None else 1.0
        wanted = "more than 0, up to 1, which keeps next to nothing"
        strength = usual if options.strength is None else options.strength
        known["strength"] = real("strength", strength, wanted, lambda share: 0 < share <= 1)
    elif options.strength is not None:
        raise MmgenError("strength", got=shown(options.strength), wanted="an image or latents to start from")
    elif options.mask is not None:
        wanted = "an image or latents to start from"
        raise MmgenError("mask", got=said(options.mask), wanted=wanted, remedy=_of_that_name(bundle, "mask"))
    return replace(options, **known)


def _checked_interval(interval: object) -> tuple[float, float]:
    wanted = "(low, high), ratios of noise to data with 0 <= low < high"
    if isinstance(interval, np.ndarray) and interval.ndim:
        interval = list(interval)
    if isinstance(interval, (tuple, list)) and len(interval) == 2:
        low, high = (real("guidance_interval", end, wanted, lambda ratio: ratio >= 0) for end in interval)
        if low < high:
            return low, high
    raise MmgenError("guidance_interval", got=shown(interval), wanted=wanted)


def _media(bundle: Bundle, image: NDArray[Any], batch: int) -> NDArray[Any]:
    """Media to start from (B, *shape): one for each sample, or one for all."""
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
    """What to do if the condition was meant, where there is one of an option's name."""
    there = any(condition.name == option for condition in bundle.conditions)
    return f"the condition of that name goes in conditions={{{option!r}: ...}}" if there else None
