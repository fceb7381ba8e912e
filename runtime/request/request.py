"""What a user asks for: the one class that ``generate``, ``stream``, the command line and ``mmgen bench`` share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.choices import near
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.request.branches import Also, by_name, unknown
from mmgen.runtime.request.conditions import Inputs
from mmgen.runtime.solvers.options import Option
from mmgen.runtime.storage.schema import Bundle

ELSEWHERE = {  # arguments that have another name in diffusers' pipelines
    "num_inference_steps": "steps", "guidance_scale": "guidance", "num_images_per_prompt": "count", "generator": "seed",
    "scheduler": "solver", "negative_prompt": "negative", "mask_image": "mask",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to make, and how.

    Numbers may be Python's or numpy's, but not bools; whole numbers may not be floats.  Nothing is checked before the
    request is given to a generator, which knows what its bundle takes.

    Attributes:
        output: which of the bundle's outputs to make, by name; None: its default.
        conditions: what to make it from, by the bundle's names, each one value or a list of them; an array may be lists
            of numbers, and media names of files or their bytes.
        steps: denoising steps, at least 1; None: the bundle's default.
        guidance: weight of the conditions; 1: no guidance.  None: the bundle's default.
        seed: of the noise, a whole number from 0.  Sample i of a seed is the same in every batch.
        solver: a name that ``mmgen inspect`` lists; None: the bundle's default.
        sigmas: ``schedule``, ``karras``, ``exponential`` or ``beta``, for solvers that choose their noise levels.
        options: of the solver, by name; they override the bundle's own if the solver is the bundle's default.
            ``mmgen inspect`` lists them.
        count: samples for each value of the conditions.
        noise: float32 (B, *L), instead of the seed's.
        negative: conditions to guide away from, by name, in place of the null ones.
        also: further conditions to combine with these, ``(conditions by name, weight)`` each; below 0 it is kept away.
        guidance_interval: ratios of noise to data (low, high); evaluations outside have no guidance, and cost as much
            as without it (Kynkaanniemi et al. 2024).
        guidance_rescale: from 0 to 1, the share of the spread added by guidance that is taken back (Lin et al. 2023).
        image: media to start from, as decode makes it: one, or (B, ...).
        latents: float32 (B, *L) to start from instead of an image, such as another result's; of tokens, codes int64.
        strength: with an image or latents, the share of the steps that is run, up to 1; None: 0.8, or 1 with a mask.
        mask: bool, true where media are regenerated; the rest of the image or latents is kept: pixels (H, W) or
            (B, H, W) of a picture, or of a shape that broadcasts to (B, *L).
        resize: fit media in files to the size, number of frames and rate that the bundle takes; else others are errors.
        deadline: seconds from the call to the media.  Fewer steps are run if by measurement the device needs longer for
            all, and the loop ends early rather than late, with the denoiser's current prediction; the result says so.
            At least one evaluation is run.  The first request of a size measures, within this time too.
    """

    output: str | None = None
    conditions: Mapping[str, object] | None = None
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
    latents: NDArray[Any] | None = None
    strength: float | None = None
    mask: NDArray[np.bool_] | None = None
    resize: bool = False
    deadline: float | None = None


REQUESTED = "a Request, or its attributes as arguments by name"
NAMES = tuple(field.name for field in fields(Request))
MEDIA_NAMES = ("image", "latents", "mask", "noise")  # attributes that give way to inputs of these names


def said_of(request: Request) -> dict[str, Any]:
    """Return what a request says: the attributes that aren't as a request has them that says nothing, and the seed."""
    silent = vars(Request())
    return {name: value for name, value in vars(request).items() if value is not silent[name] or name == "seed"}


def read_request(bundle: Bundle, inputs: Inputs, request: Request | None, given: Mapping[str, object]) -> Request:
    """Combine a request with the arguments of a call.

    Args:
        inputs: the bundle's conditions.
        request: to start from; None: an empty one.
        given: the attributes of a ``Request`` to set or replace, and conditions as arguments of their own, where their
            names aren't those of attributes, but for ``MEDIA_NAMES``.

    Raises:
        MmgenError: not a ``Request``, an unknown name, or a condition that is given twice.
    """
    if request is None:
        request = Request()
    elif not isinstance(request, Request):
        raise MmgenError("request", got=shown(request), wanted=REQUESTED)
    named = {
        name: value for name, value in given.items()
        if name not in NAMES or (name in MEDIA_NAMES and name in inputs and value is not None)
    }  # fmt: skip
    changes: dict[str, Any] = {name: value for name, value in given.items() if name not in named}
    combined = replace(request, **changes)
    conditions = by_name(inputs, {} if combined.conditions is None else combined.conditions, "conditions")
    for name in named:
        if name not in inputs:
            raise _no_argument(bundle, inputs, combined, name)
        if name in conditions and "conditions" in changes:
            raise MmgenError(f"condition {name!r} is given twice", remedy="leave it out of conditions")
    return replace(combined, conditions={**conditions, **named})


def _no_argument(bundle: Bundle, inputs: Inputs, request: Request, name: str) -> MmgenError:
    """Make the error about an argument that is neither an attribute of a request nor a condition."""
    from mmgen.runtime.solvers.registry import options_of  # a dozen files, which few requests need here

    what = f"unknown argument {shown(name)}"
    solver = bundle.defaults.solver if request.solver is None else request.solver
    if name in {f.name for f in fields(options_of(solver, bundle.process))}:
        return MmgenError(what, remedy=f"it is an option of solver {solver!r}: options={{{name!r}: ...}}")
    if name == "cancel":
        return MmgenError(what, remedy="a stream has a method cancel")
    meant = ELSEWHERE.get(name) or near(name, [*inputs, *NAMES, "cancel"])
    if meant is None or meant in inputs:
        return unknown(inputs, name)
    return MmgenError(what, remedy=f"did you mean {meant!r}?")
