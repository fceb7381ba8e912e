"""A bundle, opened: requests in, media out.

The loop here is the same for every model, solver and backend: row i of the
solver's table is bound to the step graph by the plan, and nothing returns to the
host before somebody asks for it.
"""

import time
from collections.abc import Generator as Loop
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.protocol import Backend, Runner
from mmgen.runtime.backends.registry import check_backend, open_backend
from mmgen.runtime.base.choices import chosen
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.fork import keep_in_children
from mmgen.runtime.base.numbers import whole
from mmgen.runtime.loop.encoding import encode
from mmgen.runtime.loop.fit import check_decoding, check_for
from mmgen.runtime.loop.masked_plan import MaskedPlan
from mmgen.runtime.loop.pace import Pace, fitting
from mmgen.runtime.loop.plan import Plan, decode
from mmgen.runtime.loop.plans import Loan, Plans
from mmgen.runtime.loop.results import Progress, Result, Timings
from mmgen.runtime.loop.run import Run
from mmgen.runtime.loop.stream import Flag, Stream
from mmgen.runtime.loop.turns import Cancel, Turns, check_cancel
from mmgen.runtime.request.branches import FEWER, MOST, Also
from mmgen.runtime.request.conditions import open_inputs
from mmgen.runtime.request.options import Course, Options, Request, check, checked_latents
from mmgen.runtime.solvers.options import Option
from mmgen.runtime.storage.bundle import AnyPath, read_bundle
from mmgen.runtime.storage.graph_file import check_files
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle, Role


class Generator:
    """Made by ``load``.

    Any thread may call it.  Calls run one after the other in the order in which they came, a stream's rows each as a
    call of its own, so between two rows other requests are served.  Closing twice does no harm.  In a process that is
    forked from the one that loaded it, every call is an error, and closing it does nothing.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._turns = Turns()
        self._inputs = open_inputs(bundle)
        self._paces: dict[tuple[int, int], Pace] = {}  # by B and G
        self._runners: dict[Role, Runner] = {}
        kind = MaskedPlan if isinstance(bundle.process, Masked) else Plan
        self._fits = check_for(bundle, backend.name)
        self._plans = Plans(partial(kind, bundle, backend, self._runners))
        roles: tuple[Role, ...] = ("condition", "timestep", "step", "decode")
        for role in roles:
            if role in bundle.graphs:
                self._runners[role] = backend.runner(bundle, role)
        keep_in_children(self)

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
        cancel: Cancel | None = None,
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
            cancel: a ``threading.Event`` that another thread may set, or anything with its ``is_set``: the request ends
                before its next row.  It is played row by row then, since what is recorded as one can't be ended early.
            named: conditions as arguments of their own, where these have no such name: ``generate(prompt="a cat")``.

        Raises:
            Cancelled: ``cancel`` was set.
            MmgenError: a bad argument, latents that are not finite, a device that fails, or the generator was closed,
                also while the request waited or ran.
        """
        started = time.perf_counter()
        asked = Options(
            steps, guidance, seed, solver, sigmas, options, count, noise, negative, also, guidance_interval,
            guidance_rescale, image, latents, strength, mask, deadline,
        )  # fmt: skip
        request = check(self.bundle, self._inputs, asked, conditions, named, self._fits)
        check_cancel(cancel)
        return self._turns.run(lambda: self._play(request, started, cancel), cancel)

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
    ) -> Stream:
        """The same, row by row; leaving the loop cancels, and ``Stream.cancel`` does so from any thread.

        Arguments and errors as for ``generate``; arguments are checked before this returns, and a deadline's time runs
        from here, with what other requests take between the rows.
        """
        clock = time.perf_counter()
        asked = Options(
            steps, guidance, seed, solver, sigmas, options, count, noise, negative, also, guidance_interval,
            guidance_rescale, image, latents, strength, mask, deadline,
        )  # fmt: skip
        request, cancel = check(self.bundle, self._inputs, asked, conditions, named, self._fits), Flag()
        return Stream(self._turns, self._loop(request, clock, cancel), cancel)

    def decode(self, latents: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Media (B, ...) and codes (B, ...) or None, of latents float32 (B, *L); or of codes int64 (B, *L)."""
        batch = max(len(latents), 1) if isinstance(latents, np.ndarray) and latents.ndim else 1
        given = checked_latents(self.bundle, latents, batch)
        check_decoding(self.bundle, self.backend, batch)
        return self._turns.run(lambda: decode(self.bundle, self._backend, self._runners["decode"], given))

    def forget(self, *graphs: Literal["condition", "timestep"]) -> None:
        """Have the next requests run these graphs, though what they make is there already from the last one."""
        for graph in graphs:
            chosen("graph", graph, ("condition", "timestep"))

        def forget() -> None:
            for plan in self._plans:
                plan.invariants.forget(*graphs)

        self._turns.run(forget)

    def warm_up(self, batch: int = 1, steps: int | None = None) -> None:
        """Make a request that nobody sees, so that the first real one of its size is as fast as the next.

        Memory is laid out, each graph but ``encode`` runs for these shapes, and the loop is recorded where the backend
        does so.  The size is that of a request with the bundle's default guidance and solver.

        Args:
            batch: samples, at least 1.
            steps: denoising steps, at least 1; None: the bundle's default.

        Raises:
            MmgenError: as ``generate``.
        """
        from mmgen.runtime.request.example import example

        count = whole("batch", batch, "a whole number, at least 1", 1, MOST)
        self.generate(**example(self.bundle), count=count, steps=steps)

    def close(self) -> None:
        """Free graphs and memory, from any thread, also inside a stream.

        Requests that wait end with an error, and those that run and streams do before their next row; it returns when
        what is running has come that far.  Inside a call of the same thread, such as in a handler of a signal, it
        returns at once, and all is freed at the end of that call.
        """
        self._turns.close(self._free)

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _free(self) -> None:
        self._plans.close()
        while self._runners:
            self._runners.popitem()[1].close()
        self._backend.close()

    def _play(self, request: Request, clock: float, cancel: Cancel | None) -> Result:
        """The whole of a request, in one turn."""
        with self._started(request, clock) as run:
            early = run.end is not None or cancel is not None  # what is recorded as one can't be ended early
            loop = None if early else run.plan.loop()
            if loop is None:
                for _ in self._rows(run, cancel):
                    pass
            else:
                clock = time.perf_counter()
                loop()
                self._backend.wait()
                run.timings.loop = time.perf_counter() - clock
            self._turns.check(cancel)
            return run.result(len(run.plan.steps) if loop else len(run.timings.steps))

    def _loop(self, request: Request, clock: float, cancel: Cancel) -> Loop[Progress, None, None]:
        """Each part between two rows in one turn."""
        with self._started(request, clock) as run:
            for row, last in self._rows(run, cancel):
                yield run.progress(row, last)

    def _rows(self, run: Run, cancel: Cancel | None) -> Iterator[tuple[int, bool]]:
        """Run row by row; yields each row's number, from 1, when it is done, and whether it was the last."""
        for row, step in enumerate(run.plan.steps, 1):
            self._turns.check(cancel)
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
    def _started(self, request: Request, clock: float) -> Iterator[Run]:
        """A run with the request written and its conditions made; an error drops its plan.

        ``clock`` is when the deadline's time began.
        """
        asked, deadline, timings = request.asked, request.options.deadline, Timings()
        try:
            size = (asked.batch, len(asked.weights))
            pace = self._paces.setdefault(size, Pace(len(asked.weights)))
            latents = self._given(request, timings)
            course = request.course(request.steps)
            if deadline is not None:
                if not pace.known:
                    self._measure(request, latents, pace)
                left = clock + deadline - time.perf_counter()
                course = fitting(pace, request.course, request.steps, request.least, left)
            with self._written(request, course, latents, timings) as loan:
                pace.condition.append(timings.condition + timings.timestep)
                end = None if deadline is None else clock + deadline
                yield Run(request, course, loan, self._turns, timings, pace, end)
        except MemoryError as error:
            raise MmgenError("the request is larger than the memory", remedy=FEWER) from error

    @contextmanager
    def _written(
        self, request: Request, course: Course, latents: NDArray[Any] | None, timings: Timings
    ) -> Iterator[Loan]:
        """The plan of a course, with everything ready for its first row."""
        clock = time.perf_counter()
        with self._plans.lend(course.size(request.asked.batch, len(request.asked.weights))) as loan:
            plan = loan.plan()
            start, noises = request.start(course.table, latents), request.noises(course.table)
            plan.write(course.table, request.asked, start, noises, course.rescale)
            plan.invariants.make_conditions()
            self._backend.wait()
            made = time.perf_counter()
            timings.condition = made - clock
            if plan.invariants.make_timesteps():
                self._backend.wait()
                timings.timestep = time.perf_counter() - made
            yield loan

    def _given(self, request: Request, timings: Timings) -> NDArray[Any] | None:
        """The latents that a request starts from, if any; media are encoded."""
        if request.image is None:
            return request.latents
        clock = time.perf_counter()
        if "encode" not in self._runners:  # few requests need it, and it has weights of its own
            check_files(self.bundle, "encode")
            self._runners["encode"] = self._backend.runner(self.bundle, "encode")
        latents = encode(self.bundle, self._backend, self._runners["encode"], request.image)
        timings.encode = time.perf_counter() - clock
        return latents

    def _measure(self, request: Request, latents: NDArray[Any] | None, pace: Pace) -> None:
        """Time the rows of the shortest course and the decoder, each the second time it runs."""
        course, timings = request.course(request.least), Timings()
        with self._written(request, course, latents, timings) as loan:
            plan = loan.plan()
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


def load(
    folder: AnyPath,
    backend: str = "auto",
    *,
    threads: int | None = None,
    verify: bool = True,
    build: bool = False,
    public_key: AnyPath | None = None,
) -> Generator:
    """Open a bundle.

    Args:
        folder: the ``.mmgen`` folder.
        backend: ``auto`` or a name of ``mmgen.runtime.backends.registry.NAMES``.
        threads: for CPU backends; None: one a core.
        verify: compare every file with its hash first.
        build: make TensorRT engines for this device first if there are none that fit, or for ``ort-cpu`` optimised
            graphs, as ``mmgen build`` does; it may take minutes, and is never done without being asked for.
        public_key: the file of a key that the bundle must be signed with, and its engines, by ``mmgen sign``.

    Raises:
        MmgenError: not a whole bundle, one that isn't signed with the key, or a backend that can't be had.
    """
    threads = check_backend(backend, threads)  # before what takes its time
    if build and public_key is not None:
        remedy = "build, sign with mmgen sign, and then load"
        raise MmgenError("what is built here is not signed yet, and only what is signed was asked for", remedy=remedy)
    bundle = read_bundle(folder, verify=verify, public_key=public_key)
    if build:
        from mmgen.runtime.building import ensure_built  # which starts processes and looks for devices

        ensure_built(bundle, backend)
    opened = open_backend(backend, bundle, threads)
    try:
        return Generator(bundle, opened)
    except BaseException:
        opened.close()
        raise
