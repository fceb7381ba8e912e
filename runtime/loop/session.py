"""The graphs of a bundle on a backend, and the loop over them.

The loop is the same for every model, solver and backend: the plan binds row i of the solver's table to the step graph
for evaluation i, and nothing returns to the host before somebody asks for it.
"""

import time
from collections.abc import Generator as Loop
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.protocol import Backend, Runner
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.loop.encoding import decode, run_alone
from mmgen.runtime.loop.masked_plan import MaskedPlan
from mmgen.runtime.loop.pace import Pace, fitting
from mmgen.runtime.loop.plan import Plan
from mmgen.runtime.loop.plans import Loan, Plans
from mmgen.runtime.loop.results import Progress, Result, Timings
from mmgen.runtime.loop.run import Run
from mmgen.runtime.loop.turns import Cancel, Turns
from mmgen.runtime.request.branches import FEWER
from mmgen.runtime.request.prepare import Prepared, fewest_steps, in_steps
from mmgen.runtime.request.tokenizer import open_texts
from mmgen.runtime.storage.graph_file import check_files
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import EMBED, INPUT, Bundle, Role


class Session:
    """Plays prepared requests.  Its caller has a turn: one call at a time touches the device."""

    def __init__(self, bundle: Bundle, backend: Backend, turns: Turns) -> None:
        self.backend = backend
        self._bundle, self._turns = bundle, turns
        self._read = open_texts(bundle)
        self._paces: dict[tuple[int, int], Pace] = {}  # by B and G
        self._runners: dict[Role, Runner] = {}
        self._features: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}  # of inputs: the last media, and theirs
        kind = MaskedPlan if isinstance(bundle.process, Masked) else Plan
        self._plans = Plans(partial(kind, bundle, backend, self._runners))
        roles: tuple[Role, ...] = ("condition", "timestep", "step", "decode")
        for role in roles:
            if role in bundle.graphs:
                self._runners[role] = backend.runner(bundle, role)

    def run(self, prepared: Prepared, clock: float, cancel: Cancel | None) -> Result:
        """Play a whole request in one turn.

        Args:
            clock: when the deadline's time began, by ``time.perf_counter``.
            cancel: ends the request before its next evaluation once it is set; evaluations then run one by one.

        Raises:
            Cancelled: ``cancel`` was set.
            MmgenError: latents that are not finite, or a device that fails.
        """
        with self._started(prepared, clock) as run:
            # A loop that is recorded as one call can't be ended early.
            singly = run.end is not None or cancel is not None or run.prepared.may_end_early
            loop = None if singly else run.plan.loop()
            if loop is None:
                for _ in self._evaluations(run, cancel):
                    pass
            else:
                clock = time.perf_counter()
                loop()
                self.backend.wait()
                run.timings.loop = time.perf_counter() - clock
            self._turns.check(cancel)
            return run.result(len(run.plan.steps) if loop else run.evaluation)

    def evaluations(self, prepared: Prepared, clock: float, cancel: Cancel) -> Loop[Progress, None, None]:
        """Play a request evaluation by evaluation, each in a turn of its own; arguments and errors as for ``run``."""
        with self._started(prepared, clock) as run:
            for evaluation, last in self._evaluations(run, cancel):
                yield run.progress(evaluation, last)

    def decode(self, latents: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode latents float32 or codes int64 (B, *L) to media (B, ...), and codes (B, ...) or None."""
        return decode(self._bundle, self.backend, self._runners.get("decode"), latents)

    def features(self, name: str, media: NDArray[Any]) -> NDArray[Any]:
        """Encode media (n, ...) of an input to what the other graphs take for it; the last of each is kept."""
        before = self._features.get(name)
        if before is None or not np.array_equal(before[0], media):
            before = self._features[name] = media, self._run_alone(INPUT + name, media)
        return before[1]

    def embedding(self, name: str, features: NDArray[Any]) -> NDArray[np.float32]:
        """Embed what an input was encoded to, (n, ...), as unit vectors float32 (n, D)."""
        return self._run_alone(EMBED + name, features)

    def forget(self, *graphs: str) -> None:
        """Have the next requests run these graphs, condition and timestep, even if nothing changed."""
        for plan in self._plans:
            plan.invariants.forget(*graphs)

    def close(self) -> None:
        """Free graphs and memory."""
        self._plans.close()
        while self._runners:
            self._runners.popitem()[1].close()
        self.backend.close()

    def _evaluations(self, run: Run, cancel: Cancel | None) -> Iterator[tuple[int, bool]]:
        """Run one by one; yields each evaluation's number, from 1, when it is done, and whether it was the last."""
        last = False
        while not last and (evaluation := run.next()) is not None:
            self._turns.check(cancel)
            clock = time.perf_counter()
            run.plan.steps[evaluation - 1]()
            self.backend.wait()
            now = time.perf_counter()
            run.add_evaluation(evaluation, now - clock)
            last = run.following is None or run.is_late(now)
            yield evaluation, last

    @contextmanager
    def _started(self, prepared: Prepared, clock: float) -> Iterator[Run]:
        """Start a run: the request is written and its conditions computed; an error drops its plan."""
        deadline, timings, steps = prepared.request.deadline, Timings(), prepared.steps
        guides = prepared.size.guides
        try:
            pace = self._paces.setdefault((prepared.size.batch, guides), Pace(guides))
            prepared = self._encoded(prepared, timings)
            if deadline is not None:
                least = fewest_steps(self._bundle, prepared.request)
                if not pace.known:
                    self._measure(in_steps(prepared, least), pace)
                left = clock + deadline - time.perf_counter()
                prepared = fitting(pace, partial(in_steps, prepared), steps, least, left)
            with self._written(prepared, timings) as loan:
                pace.condition.append(timings.condition + timings.timestep)
                end = None if deadline is None else clock + deadline
                yield Run(prepared, steps, loan, self._turns, timings, pace, end, self._read)
        except MemoryError as error:
            raise MmgenError("the request is larger than the memory", remedy=FEWER) from error

    @contextmanager
    def _written(self, prepared: Prepared, timings: Timings) -> Iterator[Loan]:
        """Lend a request's plan, with everything ready for its first evaluation."""
        clock = time.perf_counter()
        with self._plans.lend(prepared.size) as loan:
            plan = loan.plan()
            plan.write(prepared)
            plan.invariants.make_conditions()
            self.backend.wait()
            made = time.perf_counter()
            timings.condition = made - clock
            if plan.invariants.make_timesteps():
                self.backend.wait()
                timings.timestep = time.perf_counter() - made
            yield loan

    def _encoded(self, prepared: Prepared, timings: Timings) -> Prepared:
        """Return the request with latents in place of an image to start from."""
        if prepared.image is None:
            return prepared
        clock = time.perf_counter()
        latents = self._run_alone("encode", prepared.image)
        timings.encode = time.perf_counter() - clock
        return replace(prepared, image=None, latents=latents)

    def _run_alone(self, role: Role, given: NDArray[Any]) -> NDArray[Any]:
        """Run a graph that few requests need, and open it when the first one does: it has weights of its own."""
        if role not in self._runners:
            check_files(self._bundle, role)
            self._runners[role] = self.backend.runner(self._bundle, role)
        return run_alone(self._bundle, self.backend, self._runners[role], role, given)

    def _measure(self, prepared: Prepared, pace: Pace) -> None:
        """Time an evaluation of a request in the fewest steps and the decoder, each the second time it runs."""
        timings = Timings()
        with self._written(prepared, timings) as loan:
            plan = loan.plan()
            pace.condition.append(timings.condition + timings.timestep)
            for _ in range(2):
                clock = time.perf_counter()
                plan.steps[0]()
                self.backend.wait()
                evaluated = time.perf_counter() - clock
                clock = time.perf_counter()
                plan.decode_x0()
                decoded = time.perf_counter() - clock
            pace.add_evaluation(prepared.size.alone[0], evaluated)
            pace.decode.append(decoded)
