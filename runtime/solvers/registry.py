"""Solvers by name: a whole run as a table of numbers.  Those for tokens are in ``masked``.

Each solver is a function (process, steps, sigmas, options, begin) -> Table in float64; a
new one is one more function and one more line here.
"""

import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mmgen.runtime.base.choices import chosen
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.solvers.adams import LMS, PLMS, edm_lms, flow_lms, lms, plms
from mmgen.runtime.solvers.dpm import (
    DPM,
    DPM2,
    EDMDPM,
    EDMDPM2,
    FlowDPM,
    FlowDPM2,
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_sde_2m,
    edm_dpmpp_2m,
    edm_dpmpp_3m,
    edm_dpmpp_sde_2m,
    flow_dpmpp_2m,
    flow_dpmpp_3m,
    flow_dpmpp_sde_2m,
)
from mmgen.runtime.solvers.euler import (
    EDMEuler,
    EDMHeun,
    Euler,
    EulerAncestral,
    FlowEuler,
    FlowHeun,
    Heun,
    edm_euler,
    edm_euler_ancestral,
    edm_heun,
    euler,
    euler_ancestral,
    flow_euler,
    flow_heun,
    heun,
)
from mmgen.runtime.solvers.masked import SAMPLERS
from mmgen.runtime.solvers.onestep import DDIM, DDPM, Consistency, consistency, ddim, ddpm
from mmgen.runtime.solvers.options import Option, checked_options
from mmgen.runtime.solvers.schedules import check_steps
from mmgen.runtime.solvers.table import Table
from mmgen.runtime.solvers.unipc import FlowUniPC, UniPC, flow_unipc, unipc
from mmgen.runtime.storage.process import EDM, Diffusion, Flow, Masked, Process
from mmgen.runtime.storage.schema import Sigmas

_Solver = tuple[Callable[[Any, int, Sigmas, Any, int], Table], type]  # with the dataclass of its options

ON_DIFFUSION: Mapping[str, _Solver] = {
    "ddpm": (ddpm, DDPM),
    "ddim": (ddim, DDIM),
    "euler": (euler, Euler),
    "euler-ancestral": (euler_ancestral, EulerAncestral),
    "heun": (heun, Heun),
    "dpmpp-2m": (dpmpp_2m, DPM2),
    "dpmpp-3m": (dpmpp_3m, DPM),
    "dpmpp-sde-2m": (dpmpp_sde_2m, DPM2),
    "unipc": (unipc, UniPC),
    "lms": (lms, LMS),
    "plms": (plms, PLMS),
}
ALONG_FLOW: Mapping[str, _Solver] = {
    "flow-euler": (flow_euler, FlowEuler),
    "flow-heun": (flow_heun, FlowHeun),
    "dpmpp-2m": (flow_dpmpp_2m, FlowDPM2),
    "dpmpp-3m": (flow_dpmpp_3m, FlowDPM),
    "dpmpp-sde-2m": (flow_dpmpp_sde_2m, FlowDPM2),
    "unipc": (flow_unipc, FlowUniPC),
    "lms": (flow_lms, LMS),
}
ON_EDM: Mapping[str, _Solver] = {
    "consistency": (consistency, Consistency),
    "euler": (edm_euler, EDMEuler),
    "euler-ancestral": (edm_euler_ancestral, EulerAncestral),
    "heun": (edm_heun, EDMHeun),
    "dpmpp-2m": (edm_dpmpp_2m, EDMDPM2),
    "dpmpp-3m": (edm_dpmpp_3m, EDMDPM),
    "dpmpp-sde-2m": (edm_dpmpp_sde_2m, EDMDPM2),
    "lms": (edm_lms, LMS),
}
SOLVERS: tuple[str, ...] = tuple(dict.fromkeys((*ON_DIFFUSION, *ALONG_FLOW, *ON_EDM, *SAMPLERS)))


def solvers_for(process: Process) -> tuple[str, ...]:
    """Return the names of the solvers that fit a process."""
    return tuple(_fitting(process))


def options_of(solver: str, process: Process) -> type:
    """Return the dataclass of a solver's options.

    Raises:
        MmgenError: unknown solver, or one that doesn't fit the process.
    """
    fitting = _fitting(process)
    known = isinstance(solver, str) and solver in SOLVERS
    what = f"solver for {'an' if process.kind == 'edm' else 'a'} {process.kind} process" if known else "solver"
    return fitting[chosen(what, solver, tuple(fitting))][1]


def _fitting(process: Process) -> Mapping[str, tuple[Callable[..., Any], type]]:
    match process:
        case Diffusion():
            return ON_DIFFUSION
        case Flow():
            return ALONG_FLOW
        case EDM():
            return ON_EDM
        case Masked():  # vq-diffusion needs a denoiser that is conditioned on the timestep
            timed = process.train_timesteps > 0
            return {name: found for name, found in SAMPLERS.items() if timed or name != "vq-diffusion"}


def table(
    solver: str,
    process: Diffusion | Flow | EDM,
    steps: int,
    *,
    sigmas: Sigmas = "schedule",
    options: Mapping[str, Option] = {},
    begin: int = 0,
) -> Table:
    """Return the table of a solver's run in float32.

    Args:
        solver: one of ``SOLVERS`` that fits the process.
        process: what the denoiser was trained to undo.
        steps: number of steps, at least 1; a diffusion can't have more than its training timesteps.  ``heun`` and
                ``flow-heun`` evaluate the denoiser 2 N - 1 times, ``plms`` N + 1 times, all others N times.
        sigmas: spacing of the noise levels: the process's own, or respaced; ``ddpm``, ``ddim`` and ``plms`` only take
            its own.
        options: fields of the solver's options, the dataclass next to it in ``ON_DIFFUSION``,
            ``ALONG_FLOW`` or ``ON_EDM``.
        begin: number of steps that are left out at the noisy end; a multistep solver then starts without history.

    Raises:
        MmgenError: unknown solver, one that doesn't fit the process, an unknown option or a bad value of one, a
            number of steps that is impossible, a process that can't be sampled.
    """
    rows = exact(solver, process, steps, sigmas=sigmas, options=options, begin=begin)
    arrays: dict[str, Any] = {
        f.name: getattr(rows, f.name).astype(np.float32) for f in fields(rows) if f.name != "initial_scale"
    }
    if not all(np.isfinite(array).all() for name, array in arrays.items() if name != "x0_limit"):
        raise MmgenError(f"solver {solver!r} isn't finite with this process", remedy="choose another solver")
    return replace(rows, **arrays)


def exact(
    solver: str,
    process: Diffusion | Flow | EDM,
    steps: int,
    *,
    sigmas: Sigmas = "schedule",
    options: Mapping[str, Option] = {},
    begin: int = 0,
) -> Table:
    """Return the table as ``table`` does, before rounding: the arrays are float64."""
    sigmas = chosen("sigmas", sigmas, typing.get_args(Sigmas))
    kind = options_of(solver, process)
    steps = check_steps(steps)
    if not 0 <= begin < steps:
        raise MmgenError("begin", got=begin, wanted=f"0 to {steps - 1}, as there are {steps} steps")
    rows: Table = _fitting(process)[solver][0](process, steps, sigmas, checked_options(solver, kind, options), begin)
    return rows
