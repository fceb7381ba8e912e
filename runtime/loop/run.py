"""A request being played: the time of its evaluations, whether it is late, and its results."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.loop.masked_plan import MaskedPlan
from mmgen.runtime.loop.pace import Pace
from mmgen.runtime.loop.plans import AnyPlan, Loan
from mmgen.runtime.loop.results import Progress, Result, Timings
from mmgen.runtime.loop.turns import Turns
from mmgen.runtime.request.prepare import Prepared

LATEST = 3  # evaluations that show how busy the device is now

_R = TypeVar("_R")


@dataclass
class Run:
    """A request, its plan, and how far it got."""

    prepared: Prepared
    steps_asked: int
    loan: Loan
    turns: Turns
    timings: Timings
    pace: Pace
    end: float | None  # by ``time.perf_counter``, when the media are due
    evaluation: int = 0  # the last one that ran, from 1

    @property
    def plan(self) -> AnyPlan:
        """The plan; raises an error where another request has it."""
        return self.loan.plan()

    def add_evaluation(self, evaluation: int, seconds: float) -> None:
        """Record that an evaluation ran, from 1, and how long it took."""
        self.evaluation = evaluation
        self.timings.steps.append(seconds)
        self.timings.loop += seconds
        self.pace.add_evaluation(self.prepared.size.alone[evaluation - 1], seconds)

    def is_late(self, done: int, now: float) -> bool:
        """Check whether the evaluation after ``done``, and decoding, would end after the deadline."""
        return self.end is not None and now + self.pace.end(self.prepared.size.alone[done], self._load()) > self.end

    def _load(self) -> float:
        """Return how many times as long as usual the last evaluations took: other programs come and go meanwhile."""
        first = max(self.evaluation - LATEST, 0)
        usual = sum(self.pace.evaluation(alone) for alone in self.prepared.size.alone[first : self.evaluation])
        return max(1.0, sum(self.timings.steps[first : self.evaluation]) / usual) if usual else 1.0

    def progress(self, evaluation: int, last: bool) -> Progress:
        """Return the progress after an evaluation."""
        plan = self.plan

        def look(at: Callable[..., Any], *given: object) -> Callable[..., Any]:
            return partial(self._look, evaluation, at, *given)

        resume = look(plan.resume, evaluation) if isinstance(plan, MaskedPlan) else None
        latents, preview = look(plan.latents, evaluation), look(plan.preview)
        result = look(self.result, evaluation, last)
        return Progress(evaluation, len(plan.steps), last, self.timings, latents, preview, result, resume)

    def result(self, done: int, last: bool = True) -> Result:
        """Decode the state after ``done`` evaluations; if the last one came early, the denoiser's prediction."""
        begun, plan, planned = time.perf_counter(), self.plan, len(self.plan.steps)
        early = last and done < planned
        latents = plan.x0() if early else plan.latents(done)
        if not np.isfinite(latents).all():
            raise MmgenError(
                f"the latents are not finite after evaluation {done} of {planned}",
                remedy="mmgen verify tells whether the bundle or the request is at fault",
            )
        clock = time.perf_counter()
        media, codes = plan.decode_x0() if early else plan.decode(done)
        now = time.perf_counter()
        self.timings.decode = now - clock
        self.pace.decode.append(now - begun)
        prepared = self.prepared
        return Result(
            media, latents, codes, self.timings, self.steps_asked, prepared.steps, planned, done, prepared.request
        )

    def _look(self, evaluation: int, at: Callable[..., _R], *given: object) -> _R:
        """Call a function of the plan after an evaluation, in a turn of its own, if the state is still that one's."""

        def look() -> _R:
            if self.evaluation != evaluation:
                raise MmgenError(
                    f"evaluation {evaluation} of this stream", got=f"evaluation {self.evaluation}, which ran since",
                    remedy="use the progress of an evaluation before asking for the next one",
                )  # fmt: skip
            self.loan.plan()  # raises where another request has it
            return at(*given)

        return self.turns.run(look)
