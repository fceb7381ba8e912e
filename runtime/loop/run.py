"""A request on its way: what its rows took, whether time is running out, and what there is to see."""

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

LATEST = 3  # rows that tell how busy the device is now

_R = TypeVar("_R")


@dataclass
class Run:
    """A request, the plan that it has and how far it got."""

    prepared: Prepared
    steps_asked: int
    loan: Loan
    turns: Turns
    timings: Timings
    pace: Pace
    end: float | None  # by ``time.perf_counter``, when the media are to be there
    row: int = 0  # the last one that ran, from 1

    @property
    def plan(self) -> AnyPlan:
        """The plan; an error where another request has it."""
        return self.loan.plan()

    def add_row(self, row: int, seconds: float) -> None:
        """Take down that a row ran, from 1, and how long it took."""
        self.row = row
        self.timings.steps.append(seconds)
        self.timings.loop += seconds
        self.pace.add_row(self.prepared.size.alone[row - 1], seconds)

    def is_late(self, row: int, now: float) -> bool:
        """Whether the row after this one, and decoding, would end after the deadline."""
        return self.end is not None and now + self.pace.end(self.prepared.size.alone[row], self._load()) > self.end

    def _load(self) -> float:
        """How many times as long as usual the last rows took: other programs come and go while a request runs."""
        first = max(self.row - LATEST, 0)
        usual = sum(self.pace.row(alone) for alone in self.prepared.size.alone[first : self.row])
        return max(1.0, sum(self.timings.steps[first : self.row]) / usual) if usual else 1.0

    def progress(self, row: int, last: bool) -> Progress:
        """What is shown after a row."""
        plan = self.plan

        def look(at: Callable[..., Any], *given: object) -> Callable[..., Any]:
            return partial(self._look, row, at, *given)

        resume = look(plan.resume, row) if isinstance(plan, MaskedPlan) else None
        latents, preview, result = look(plan.latents, row), look(plan.preview), look(self.result, row, last)
        return Progress(row, len(plan.steps), last, self.timings, latents, preview, result, resume)

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
        prepared = self.prepared
        return Result(
            media, latents, codes, self.timings, self.steps_asked, prepared.steps, rows, row, prepared.request
        )

    def _look(self, row: int, at: Callable[..., _R], *given: object) -> _R:
        """What is asked for after a row, in a turn of its own, if what the row made is still there."""

        def look() -> _R:
            if self.row != row:
                raise MmgenError(
                    f"row {row} of this stream", got=f"row {self.row}, which ran since",
                    remedy="look at a row before the next one is asked for",
                )  # fmt: skip
            self.loan.plan()  # raises where another request has it
            return at(*given)

        return self.turns.run(look)
