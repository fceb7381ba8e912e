"""A bundle, opened: requests in, media out.

The loop here is the same for every model, solver and backend: row i of the
solver's table is bound to the step graph by the plan, and nothing returns to the
host before somebody asks for it.
"""

import threading
import time
from collections.abc import Generator as Loop
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backend import Backend, Runner, check_backend, open_backend
from mmgen.runtime.bundle import AnyPath, Bundle, Role, read_bundle
from mmgen.runtime.choices import chosen
from mmgen.runtime.conditions import open_inputs
from mmgen.runtime.encoding import encode
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.masked_plan import MaskedPlan
from mmgen.runtime.options import Course, Options, Request, check, checked_latents
from mmgen.runtime.pace import Pace, fitting
from mmgen.runtime.plan import Plan, Size, decode
from mmgen.runtime.process import Masked
from mmgen.runtime.request import Also
from mmgen.runtime.results import Progress, Result, Timings
from mmgen.runtime.solver_options import Option

AnyPlan = Plan | MaskedPlan
PLANS = 4  # kept: requests of so many different sizes can alternate without being laid out again


class Generator:
    """Made by ``load``.  Calls from several threads queue; closing twice does no harm."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._busy = threading.Lock()
        self._owner: int | None = None  # the thread that holds the lock
        self._closed = False
        self._inputs = open_inputs(bundle)
        self._plans: dict[Size, AnyPlan] = {}  # the least recently used first
        self._paces: dict[tuple[int, int], Pace] = {}  # by B and G
        self._runners: dict[Role, Runner] = {}
        roles: tuple[Role, ...] = ("condition", "timestep", "step", "decode")
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
        conditions: Mapping[str, object] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        sigmas: str | None = None,
        options: Mapping[str, Option] | None = None,
        count: int | None = None,
        noise: NDArray[np.float32] | None = None,
        negative: Mapping[str, object] | None = None,
        also: Sequence[Also] = (),
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        image: NDArray[Any] | None = None,
        latents: NDArray[Any] | None = None,
        strength: float | None = None,
        mask: NDArray[np.bool_] | None = None,
        deadline: float | None = None,
        **named: object,
    ) -> Result:
        """Make media.

        Numbers may be Python's or numpy's, but no bools; whole numbers may be no floats.

        Args:
            conditions: what to make, by the bundle's names, each one value or a list of them; an array may be lists of
                numbers.
            steps: denoising steps, at least 1; None: the bundle's default.
            guidance: weight of the asked branch; 1: no guidance.  None: the bundle's default.
            seed: of the noise, a whole number from 0.  Sample i of a seed is the same in every batch.
            solver: one of ``mmgen.runtime.solvers.SOLVERS`` that fits the bundle's process.
            sigmas: ``schedule``, ``karras``, ``exponential`` or ``beta``, for solvers that choose their noise levels.
            options: of the solver, by name; they go over the bundle's own if the solver is the bundle's default.
                ``mmgen inspect`` lists them, and ``mmgen.runtime.solvers.options_of`` has their types.
            count: samples for each value of the conditions.
            noise: float32 (B, *L), in place of the seed's.
            negative: conditions to guide away from, by name, in place of the null ones.
            also: more to ask for at the same time, ``(conditions by name, weight)`` each; below 0 it is kept away.
            guidance_interval: ratios of noise to data (low, high); rows outside run what is asked alone, without
                guidance and at its cost (Kynkaanniemi et al. 2024).
            guidance_rescale: from 0 to 1, how much of the spread that guidance adds is taken back (Lin et al. 2023).
            image: media to start from, as decode makes it: one, or (B, ...).
            latents: float32 (B, *L) to start from in its place, such as another result's; of tokens, codes int64.
            strength: with one of these, the share of the steps that is made, up to 1; None: 0.8, or 1 with a mask.
            mask: bool, true where media are made anew, the rest of what is started from being kept: pixels (H, W) or
                (B, H, W) of a picture, or of a shape that broadcasts to (B, *L).
            deadline: seconds from this call to the media.  Fewer steps are made if the device was measured to need
                longer for all, and the loop ends early rather than late, with what the denoiser believes then; the
                result says so.  One row is always run.  The first request of a size measures, in this time too.
            named: conditions as arguments of their own, where these have no such name: ``generate(prompt="a cat")``.

        Raises:
            MmgenError: a bad argument, or latents that are not finite.
        """
        started = time.perf_counter()
        asked = Options(
            steps, guidance, seed, solver, sigmas, options, count, noise, negative, also, guidance_interval,
            guidance_rescale, image, latents, strength, mask, deadline,
        )  # fmt: skip
        request = check(self.bundle, self._inputs, asked, conditions, named)
        with self._exclusive(), self._started(request, started) as run:
            loop = run.plan.loop() if run.end is None else None  # what is recorded as one can't be ended early
            if loop is None:
                for _ in self._rows(run):
                    pass
            else:
                clock = time.perf_counter()
                loop()
                self._backend.wait()
                run.timings.loop = time.perf_counter() - clock
            return run.result(len(run.plan.steps) if loop else len(run.timings.steps))

    def stream(
        self,
        *,
        conditions: Mapping[str, object] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        sigmas: str | None = None,
        options: Mapping[str, Option] | None = None,
        count: int | None = None,
        noise: NDArray[np.float32] | None = None,
        negative: Mapping[str, object] | None = None,
        also: Sequence[Also] = (),
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        image: NDArray[Any] | None = None,
        latents: NDArray[Any] | None = None,
        strength: float | None = None,
        mask: NDArray[np.bool_] | None = None,
        deadline: float | None = None,
        **named: object,
    ) -> Loop[Progress, None, None]:
        """The same, row by row; leaving the loop cancels.

        Arguments and errors as for ``generate``; arguments are checked before this returns.
        """
        asked = Options(
            steps, guidance, seed, solver, sigmas, options, count, noise, negative, also, guidance_interval,
            guidance_rescale, image, latents, strength, mask, deadline,
        )  # fmt: skip
        return self._loop(check(self.bundle, self._inputs, asked, conditions, named))

    def decode(self, latents: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Media (B, ...) and codes (B, ...) or None, of latents float32 (B, *L); or of codes int64 (B, *L)."""
        batch = max(len(latents), 1) if isinstance(latents, np.ndarray) and latents.ndim else 1
        given = checked_latents(self.bundle, latents, batch)
        with self._exclusive():
            return decode(self.bundle, self._backend, self._runners["decode"], given)

    def forget(self, *graphs: Literal["condition", "timestep"]) -> None:
        """Have the next requests run these graphs, though what they make is there already from the last one."""
        for graph in graphs:
            chosen("graph", graph, ("condition", "timestep"))
        with self._exclusive():
            for plan in self._plans.values():
                plan.invariants.forget(*graphs)

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

    def _loop(self, request: Request) -> Loop[Progress, None, None]:
        with self._exclusive(), self._started(request, time.perf_counter()) as run:
            for row, last in self._rows(run):
                yield run.progress(row, last)
                if self._closed:
                    raise MmgenError("this generator was closed inside a stream", remedy="load the bundle again")

    def _rows(self, run: "_Run") -> Iterator[tuple[int, bool]]:
        """Run row by row; yields each row's number, from 1, when it is done, and whether it was the last."""
        for row, step in enumerate(run.plan.steps, 1):
            clock = time.perf_counter()
            step()
            self._backend.wait()
            now = time.perf_counter()
            run.add_row(row, now - clock)
            last = row == len(run.plan.steps) or run.is_late(row, now)
            yield row, last
            if last:
                return

    @contextmanager
    def _started(self, request: Request, clock: float) -> Iterator["_Run"]:
        """A run with the request written and its conditions made; an error drops its plan.

        ``clock`` is when the deadline's time began.
        """
        asked, deadline, timings = request.asked, request.options.deadline, Timings()
        size = (asked.batch, len(asked.weights))
        pace = self._paces.setdefault(size, Pace(len(asked.weights)))
        latents = self._given(request, timings)
        course = request.course(request.steps)
        if deadline is not None:
            if not pace.known:
                self._measure(request, latents, pace)
            left = clock + deadline - time.perf_counter()
            course = fitting(pace, request.course, request.steps, request.least, left)
        with self._written(request, course, latents, timings) as plan:
            pace.condition.append(timings.condition + timings.timestep)
            yield _Run(request, course, plan, timings, pace, None if deadline is None else clock + deadline)

    @contextmanager
    def _written(
        self, request: Request, course: Course, latents: NDArray[Any] | None, timings: Timings
    ) -> Iterator[AnyPlan]:
        """The plan of a course, with everything ready for its first row."""
        clock, size = time.perf_counter(), course.size(request.asked)
        plan = self._plan(size)
        try:
            start, noises = request.start(course.table, latents), request.noises(course.table)
            plan.write(course.table, request.asked, start, noises, course.rescale)
            plan.invariants.make_conditions()
            self._backend.wait()
            made = time.perf_counter()
            timings.condition = made - clock
            if plan.invariants.make_timesteps():
                self._backend.wait()
                timings.timestep = time.perf_counter() - made
            yield plan
        except Exception:
            if self._plans.pop(size, None):  # what half-ran is not for the next request
                plan.close()
            raise

    def _given(self, request: Request, timings: Timings) -> NDArray[Any] | None:
        """The latents that a request starts from, if any; media are encoded."""
        if request.image is None:
            return request.latents
        clock = time.perf_counter()
        if "encode" not in self._runners:  # few requests need it, and it has weights of its own
            self._runners["encode"] = self._backend.runner(self.bundle, "encode")
        latents = encode(self.bundle, self._backend, self._runners["encode"], request.image)
        timings.encode = time.perf_counter() - clock
        return latents

    def _measure(self, request: Request, latents: NDArray[Any] | None, pace: Pace) -> None:
        """Time the rows of the shortest course and the decoder, each the second time it runs."""
        course, timings = request.course(request.least), Timings()
        with self._written(request, course, latents, timings) as plan:
            pace.condition.append(timings.condition + timings.timestep)
            for _ in range(2):
                clock = time.perf_counter()
                plan.steps[0]()
                self._backend.wait()
                row = time.perf_counter() - clock
                clock = time.perf_counter()
                plan.decode_x0()
                decode = time.perf_counter() - clock
            pace.add_row(course.alone[0], row)
            pace.decode.append(decode)

    def _plan(self, size: Size) -> AnyPlan:
        """The plan of a size: a kept one, or a new one in place of the least recently used."""
        plan = self._plans.pop(size, None)
        if plan is None:
            while len(self._plans) >= PLANS:
                self._plans.pop(next(iter(self._plans))).close()
            kind = MaskedPlan if isinstance(self.bundle.process, Masked) else Plan
            plan = kind(self.bundle, self._backend, self._runners, size)
        self._plans[size] = plan
        return plan


@dataclass(frozen=True)
class _Run:
    """A request on its way."""

    request: Request
    course: Course
    plan: AnyPlan
    timings: Timings
    pace: Pace
    end: float | None  # by ``time.perf_counter``, when the media are to be there

    def add_row(self, row: int, seconds: float) -> None:
        """Take down how long a row took, from 1."""
        self.timings.steps.append(seconds)
        self.timings.loop += seconds
        self.pace.add_row(self.course.alone[row - 1], seconds)

    def is_late(self, row: int, now: float) -> bool:
        """Whether the row after this one, and decoding, would end after the deadline."""
        return self.end is not None and now + self.pace.end(self.course.alone[row]) > self.end

    def progress(self, row: int, last: bool) -> Progress:
        """What is shown after a row."""
        latents, result = partial(self.plan.latents, row), partial(self.result, row, last)
        resume = partial(self.plan.resume, row) if isinstance(self.plan, MaskedPlan) else None
        return Progress(row, len(self.plan.steps), last, self.timings, latents, self.plan.preview, result, resume)

    def result(self, row: int, last: bool = True) -> Result:
        """What there is after so many rows; after the last, if more were planned, what the denoiser believes."""
        begun, plan, rows = time.perf_counter(), self.plan, len(self.plan.steps)
        early = last and row < rows
        latents = plan.x0() if early else plan.latents(row)
        if not np.isfinite(latents).all():
            raise MmgenError(
                f"the latents are not finite after row {row} of {rows}",
                remedy="mmgen verify tells whether the bundle or the request is at fault",
            )
        clock = time.perf_counter()
        media, codes = plan.decode_x0() if early else plan.decode(row)
        now = time.perf_counter()
        self.timings.decode = now - clock
        self.pace.decode.append(now - begun)
        return Result(media, latents, codes, self.timings, self.request.steps, self.course.steps, rows, row)


def load(
    folder: AnyPath,
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
        build: make TensorRT engines for this device first if there are none that fit, or for ``ort-cpu`` optimised
            graphs, as ``mmgen build`` does; it may take minutes, and is never done without being asked for.

    Raises:
        MmgenError: not a whole bundle, or a backend that can't be had.
    """
    threads = check_backend(backend, threads)  # before what takes its time
    bundle = read_bundle(folder, verify=verify)
    if build:
        from mmgen.runtime.building import ensure_built  # which starts processes and looks for devices

        ensure_built(bundle, backend)
    opened = open_backend(backend, bundle, threads)
    try:
        return Generator(bundle, opened)
    except BaseException:
        opened.close()
        raise
