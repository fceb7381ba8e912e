"""A bundle, opened: requests in, media out.

The loop here is the same for every model, solver and backend: row i of the
solver's table is bound to the step graph by the plan, and nothing returns to the
host before somebody asks for it.
"""

import os
import threading
import time
from collections.abc import Generator as Loop
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime import bundle as names
from mmgen.runtime.backend import Backend, Runner, open_backend
from mmgen.runtime.building import ensure_engines
from mmgen.runtime.bundle import Bundle, Role, read_bundle
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.noise import noise as seeded_noise
from mmgen.runtime.plan import Plan, Size, decode
from mmgen.runtime.request import Branches, branches
from mmgen.runtime.results import Progress, Result, Timings
from mmgen.runtime.solvers import table as solver_table
from mmgen.runtime.table import Table
from mmgen.runtime.text import open_tokenizer

PLANS = 4  # kept: requests of so many different sizes can alternate without being laid out again


class Generator:
    """Made by ``load``.  Calls from several threads queue; closing twice does no harm."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._busy = threading.Lock()
        self._owner: int | None = None  # the thread that holds the lock
        self._closed = False
        self._encoders = {
            c.name: open_tokenizer(bundle.path(names.TOKENIZER), c.length or 0, c.pad_id)
            for c in bundle.conditions
            if c.kind == "text"
        }
        self._plans: dict[Size, Plan] = {}  # the least recently used first
        self._runners: dict[Role, Runner] = {}
        roles: tuple[Role, ...] = ("condition", "step", "decode")
        for role in roles:
            if role in bundle.graphs:
                self._runners[role] = backend.runner(bundle, role)

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    def generate(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        sigmas: str | None = None,
        count: int | None = None,
        noise: NDArray[np.float32] | None = None,
        **conditions: object,
    ) -> Result:
        """Make media.

        Args:
            steps: denoising steps, at least 1; None: the bundle's default.
            guidance: weight of the asked branch; 1: no guidance.  None: the bundle's default.
            seed: of the noise, a whole number from 0.  Sample i of a seed is the same in every batch.
            solver: one of ``mmgen.runtime.solvers.SOLVERS`` that fits the bundle's process.
            sigmas: ``schedule``, ``karras``, ``exponential`` or ``beta``, for solvers that choose their noise levels.
            count: samples for each value of the conditions.
            noise: float32 (B, *L), in place of the seed's.
            conditions: by the bundle's names, each one value or a list of values.

        Raises:
            MmgenError: a bad argument, or latents that are not finite.
        """
        request = self._request(steps, guidance, seed, solver, sigmas, count, noise, conditions)
        with self._exclusive(), self._started(request) as (plan, timings):
            if (loop := plan.loop()) is None:
                for _ in self._rows(plan, timings):
                    pass
            else:
                clock = time.perf_counter()
                loop()
                self._backend.wait()
                timings.loop = time.perf_counter() - clock
            return _result(plan, len(plan.steps), timings)

    def stream(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        sigmas: str | None = None,
        count: int | None = None,
        noise: NDArray[np.float32] | None = None,
        **conditions: object,
    ) -> Loop[Progress, None, None]:
        """The same, row by row; leaving the loop cancels.

        Arguments and errors as for ``generate``; arguments are checked before this returns.
        """
        return self._loop(self._request(steps, guidance, seed, solver, sigmas, count, noise, conditions))

    def decode(self, latents: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Media (B, ...) and codes (B, ...) or None, of latents float32 (B, *L)."""
        batch = len(latents) if isinstance(latents, np.ndarray) and latents.ndim else 1
        checked = _checked(latents, (batch, *self.bundle.latent_shape), "latents")
        with self._exclusive():
            return decode(self.bundle, self._backend, self._runners["decode"], checked)

    def close(self) -> None:
        """Free graphs and memory.  A stream that this thread has left half-way ends with it."""
        left = self._owner == threading.get_ident()  # it holds the lock for as long as somebody refers to it
        with nullcontext() if left else self._busy:
            self._closed = True
            while self._plans:
                self._plans.popitem()[1].close()
            while self._runners:
                self._runners.popitem()[1].close()
            self._backend.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One call at a time; the thread that is inside a stream would wait for itself."""
        me = threading.get_ident()
        if self._owner == me:
            raise MmgenError(
                "this generator is inside a stream",
                remedy="finish or close the stream first, or load a second generator",
            )
        with self._busy:
            if self._closed:
                raise MmgenError("this generator is closed", remedy="load the bundle again")
            self._owner = me
            try:
                yield
            finally:
                self._owner = None

    def _request(
        self,
        steps: int | None,
        guidance: float | None,
        seed: int,
        solver: str | None,
        sigmas: str | None,
        count: int | None,
        noise: NDArray[np.float32] | None,
        conditions: dict[str, object],
    ) -> "_Request":
        table = self._table(solver, steps, sigmas)
        weight = self.bundle.defaults.guidance if guidance is None else guidance
        asked = branches(self.bundle, self._encoders, conditions, weight, count)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise MmgenError("seed", got=repr(seed), wanted="a whole number from 0")
        shape = (asked.batch, *self.bundle.latent_shape)
        start = (
            seeded_noise(int(seed), asked.batch, self.bundle.latent_shape)
            if noise is None
            else _checked(noise, shape, "noise")
        )
        return _Request(table, asked, start, int(seed))

    def _table(self, solver: str | None, steps: int | None, sigmas: str | None) -> Table:
        defaults = self.bundle.defaults
        own = solver in (None, defaults.solver)  # the defaults beside the solver are for that solver alone
        if sigmas is None:
            sigmas = defaults.sigmas if own else "schedule"
        return solver_table(
            defaults.solver if solver is None else solver,
            self.bundle.process,
            defaults.steps if steps is None else steps,
            sigmas=sigmas,  # type: ignore[arg-type]  # checked there
            options=defaults.solver_options if own else {},
        )

    def _loop(self, request: "_Request") -> Loop[Progress, None, None]:
        with self._exclusive(), self._started(request) as (plan, timings):
            for row in self._rows(plan, timings):
                yield _progress(row, plan, timings)
                if self._closed:
                    raise MmgenError("this generator was closed inside a stream", remedy="load the bundle again")

    def _rows(self, plan: Plan, timings: Timings) -> Iterator[int]:
        """Run row by row; yields each row's number, from 1, when it is done."""
        for row, step in enumerate(plan.steps, 1):
            clock = time.perf_counter()
            step()
            self._backend.wait()
            timings.steps.append(time.perf_counter() - clock)
            timings.loop += timings.steps[-1]
            yield row

    @contextmanager
    def _started(self, request: "_Request") -> Iterator[tuple[Plan, Timings]]:
        """The plan with the request written and its conditions made; an error drops the plan."""
        timings, clock = Timings(), time.perf_counter()
        plan = self._plan(request.size)
        try:
            plan.write(request.table, request.asked, request.start, request.noises)
            for call in plan.conditions:
                call()
            self._backend.wait()
            timings.condition = time.perf_counter() - clock
            yield plan, timings
        except Exception:
            if self._plans.pop(request.size, None):  # what half-ran is not for the next request
                plan.close()
            raise

    def _plan(self, size: Size) -> Plan:
        """The plan of a size: a kept one, or a new one in place of the least recently used."""
        plan = self._plans.pop(size, None)
        if plan is None:
            while len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans))).close()
            plan = Plan(self.bundle, self._backend, self._runners, size)
        self._plans[size] = plan
        return plan


@dataclass(frozen=True)
class _Request:
    """A request, checked: what the host gives a plan."""

    table: Table
    asked: Branches
    start: NDArray[np.float32]  # (B, *L) unit noise
    seed: int

    @property
    def size(self) -> Size:
        return Size(self.asked.batch, len(self.asked.weights), tuple(map(bool, self.table.stochastic)))

    @property
    def noises(self) -> dict[int, NDArray[np.float32]]:
        """Unit noise (B, *L) of the rows that use it."""
        batch, *latent = self.start.shape
        rows = np.flatnonzero(self.table.stochastic)
        return {int(row): seeded_noise(self.seed, batch, tuple(latent), stream=int(row) + 1) for row in rows}


def _progress(row: int, plan: Plan, timings: Timings) -> Progress:
    latents, result = partial(plan.latents, row), partial(_result, plan, row, timings)
    return Progress(row, len(plan.steps), timings, latents, plan.preview, result)


def _result(plan: Plan, row: int, timings: Timings) -> Result:
    latents = plan.latents(row)
    if not np.isfinite(latents).all():
        raise MmgenError(
            f"the latents are not finite after row {row} of {len(plan.steps)}",
            remedy="mmgen verify tells whether the bundle or the request is at fault",
        )
    clock = time.perf_counter()
    media, codes = plan.decode(row)
    timings.decode = time.perf_counter() - clock
    return Result(media, latents, codes, timings)


def load(
    folder: str | os.PathLike[str],
    backend: str = "auto",
    *,
    threads: int | None = None,
    verify: bool = True,
    build: bool = False,
) -> Generator:
    """Open a bundle.

    Args:
        folder: the ``.mmgen`` folder.
        backend: ``auto`` or a name of ``mmgen.runtime.backend.NAMES``.
        threads: for CPU backends; None: one a core.
        verify: compare every file with its hash first.
        build: make TensorRT engines for this device first if there are none that fit, as ``mmgen build`` does; it
            takes minutes, and is never done without being asked for.

    Raises:
        MmgenError: not a whole bundle, or a backend that can't be had.
    """
    bundle = read_bundle(folder, verify=verify)
    if build:
        ensure_engines(bundle, backend)
    opened = open_backend(backend, bundle, threads)
    try:
        return Generator(bundle, opened)
    except BaseException:
        opened.close()
        raise


def _checked(array: NDArray[np.float32], shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise MmgenError(name, got=got, wanted=f"float32 {shape}")
    if not np.isfinite(array).all():
        raise MmgenError(name, got="NaN or infinity", wanted="finite numbers")
    return array
