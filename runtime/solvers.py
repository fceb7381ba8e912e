"""Solvers by name: a whole run as a table of numbers.

Each solver is a function (process, steps, sigmas, options) -> Table in float64,
in ``onestep`` or ``multistep``; a new one is one more function and one more
line here.
"""

import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, TypeVar

import numpy as np

from mmgen.runtime.errors import MmgenError
from mmgen.runtime.multistep import DPM, FlowDPM, dpmpp_2m, flow_dpmpp_2m
from mmgen.runtime.onestep import DDIM, Euler, FlowEuler, ddim, euler, flow_euler
from mmgen.runtime.process import Diffusion, Flow, Process
from mmgen.runtime.schedules import Sigmas
from mmgen.runtime.table import Table

SOLVERS: tuple[str, ...] = ("ddim", "euler", "dpmpp-2m", "flow-euler")


def solvers_for(process: Process) -> tuple[str, ...]:
    """Names of the solvers that fit a process."""
    match process:
        case Diffusion():
            return ("ddim", "euler", "dpmpp-2m")
        case Flow():
            return ("flow-euler", "dpmpp-2m")


def table(
    solver: str,
    process: Process,
    steps: int,
    *,
    sigmas: Sigmas = "schedule",
    options: Mapping[str, str | int | float | bool] = {},
) -> Table:
    """The rows of a solver's run, float32.

    Args:
        solver: one of ``SOLVERS`` that fits the process.
        process: what the denoiser was trained to undo.
        steps: number of steps, at least 1; a diffusion can't have more than its training timesteps.
        sigmas: spacing of the noise levels: the process's own, or respaced; ``ddim`` only takes its own.
        options: fields of the solver's options: ``DDIM``, ``Euler``, ``DPM`` or ``FlowDPM``.

    Raises:
        MmgenError: unknown solver, one that doesn't fit the process, an unknown option or a bad value of one, a
            number of steps that is impossible, a process that can't be sampled.
    """
    rows = exact(solver, process, steps, sigmas=sigmas, options=options)
    arrays: dict[str, Any] = {
        f.name: getattr(rows, f.name).astype(np.float32) for f in fields(rows) if f.name != "initial_scale"
    }
    if not all(np.isfinite(array).all() for name, array in arrays.items() if name != "x0_limit"):
        raise MmgenError(f"solver {solver!r} isn't finite with this process", remedy="choose another solver")
    return replace(rows, **arrays)


def exact(
    solver: str,
    process: Process,
    steps: int,
    *,
    sigmas: Sigmas = "schedule",
    options: Mapping[str, str | int | float | bool] = {},
) -> Table:
    """As ``table``, before rounding: the arrays are float64."""
    if sigmas not in typing.get_args(Sigmas):
        raise MmgenError("sigmas", got=repr(sigmas), wanted=_either(typing.get_args(Sigmas)))
    match solver, process:
        case "ddim", Diffusion():
            return ddim(process, steps, sigmas, _options(solver, DDIM, options))
        case "euler", Diffusion():
            return euler(process, steps, sigmas, _options(solver, Euler, options))
        case "dpmpp-2m", Diffusion():
            return dpmpp_2m(process, steps, sigmas, _options(solver, DPM, options))
        case "dpmpp-2m", Flow():
            return flow_dpmpp_2m(process, steps, sigmas, _options(solver, FlowDPM, options))
        case "flow-euler", Flow():
            return flow_euler(process, steps, sigmas, _options(solver, FlowEuler, options))
        case _:
            what = f"solver for a {process.kind} process" if solver in SOLVERS else "solver"
            raise MmgenError(what, got=repr(solver), wanted=_either(solvers_for(process)))


_O = TypeVar("_O")


def _options(solver: str, kind: type[_O], given: Mapping[str, str | int | float | bool]) -> _O:
    """A solver's options from names and values, each checked against its field's type."""
    hints = typing.get_type_hints(kind)
    for name, value in given.items():
        what = f"option {name!r} of solver {solver!r}"
        if name not in hints:
            raise MmgenError(what, wanted=_either(hints) or "no options", remedy="leave it out")
        hint = hints[name]
        if typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            fits, wanted = value in choices and type(value) is type(choices[0]), _either(choices)
        else:
            fits = type(value) is hint or (hint is float and type(value) is int)
            wanted = {bool: "True or False", float: "a number"}[hint]
        if not fits:
            raise MmgenError(what, got=repr(value), wanted=wanted)
    return kind(**given)


def _either(choices: typing.Iterable[object]) -> str:
    return " or ".join(map(repr, choices))
