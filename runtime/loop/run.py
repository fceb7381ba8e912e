"""A request being played: the time of its evaluations, whether it is late, and its results."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.loop.masked_plan import MaskedPlan
from mmgen.runtime.loop.pace import Pace
from mmgen.runtime.loop.plans import AnyPlan, Loan
from mmgen.runtime.loop.results import Progress, Result, Timings
from mmgen.runtime.loop.turns import Turns
from mmgen.runtime.request.prepare import Prepared
from mmgen.runtime.request.tokenizer import Decode
from mmgen.runtime.solvers.masked_reference import ended

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
    read: Decode | None  # media that are texts
    evaluation: int = 0  # the last one that ran, from 1
    following: int | None = 1  # the next one that matters; None: none

    @property
    def plan(self) -> AnyPlan:
        """The plan; raises an error where another request has it."""
        return self.loan.plan()

    def add_evaluation(self, evaluation: int, seconds: float) -> None:
        """Record that an evaluation ran, from 1, and how long it took."""
        self.evaluation, self.following = evaluation, self._following(evaluation)
        self.timings.steps.append(seconds)
        self.timings.loop += seconds
        self.pace.add_evaluation(self.prepared.size.alone[evaluation - 1], seconds)

    def next(self) -> int | None:
        """Make the next evaluation that matters ready, and return its number from 1; None: there is none."""
        plan = self.plan
        if self.following is not None and isinstance(plan, MaskedPlan):
            plan.skip(self.evaluation, self.following)
        return self.following

    def is_late(self, now: float) -> bool:
        """Check whether the next evaluation, and decoding, would end after the deadline."""
        if self.end is None or self.following is None:
            return False
        return now + self.pace.end(self.prepared.size.alone[self.following - 1], self._load()) > self.end

    def _following(self, done: int) -> int | None:
        plan = self.plan
        if self.prepared.may_end_early and isinstance(plan, MaskedPlan):
            return plan.following(done)
        return done + 1 if done < len(plan.steps) else None

    def _load(self) -> float:
        """Return how many times as long as usual the last evaluations took: other programs come and go meanwhile."""
        latest = self.timings.steps[-LATEST:]
        alone = self.prepared.size.alone[self.evaluation - len(latest) : self.evaluation]
        usual = sum(map(self.pace.evaluation, alone))
        return max(1.0, sum(latest) / usual) if usual else 1.0

    def progress(self, evaluation: int, last: bool) -> Progress:
        """Return the progress after an evaluation."""
        plan = self.plan

        def look(at: Callable[..., Any], *given: object) -> Callable[..., Any]:
            return partial(self._look, evaluation, at, *given)

        resume = look(self._resume, plan) if isinstance(plan, MaskedPlan) else None
        latents, preview = look(plan.latents, evaluation), look(plan.preview)
        result = look(self.result, evaluation, last)
        return Progress(evaluation, len(plan.steps), last, self.timings, latents, preview, result, resume)

    def result(self, done: int, last: bool = True) -> Result:
        """Decode the state after evaluation ``done``; if a deadline made it the last one, the denoiser's prediction."""
        begun, plan, planned = time.perf_counter(), self.plan, len(self.plan.steps)
        over = self.following is None or done == planned  # of a loop that ran as one call, nothing else was recorded
        late = last and not over
        latents = plan.x0() if late else plan.latents(done)
        if not np.isfinite(latents).all():
            raise MmgenError(
                f"the latents are not finite after evaluation {done} of {planned}",
                remedy="mmgen verify tells whether the bundle or the request is at fault",
            )
        clock = time.perf_counter()
        media, codes = plan.decode_x0() if late else plan.decode(done)
        texts = None if self.read is None else self.read(media)
        now = time.perf_counter()
        self.timings.decode = now - clock
        self.pace.decode.append(now - begun)
        prepared, ran = self.prepared, len(self.timings.steps) or planned
        if last:
            latents = ended(latents, prepared.bundle.media.end_id)
        return Result(
            media, latents, codes, self.timings, self.steps_asked, prepared.steps, planned, ran, prepared.request,
            prepared.bundle.media, over and ran < planned, texts,
        )  # fmt: skip

    def _resume(self, plan: MaskedPlan, tokens: NDArray[np.int64]) -> None:
        """Go on from other tokens, which the next evaluation may change whatever the ones before them were."""
        plan.resume(self.evaluation, tokens)
        if self.following is not None:
            self.following = self.evaluation + 1

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
