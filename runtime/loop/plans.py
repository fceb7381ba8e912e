"""The plans of a generator: each lent to one request at a time, and kept for the next one of the same size.

Requests whose evaluations alternate have a plan each, so neither sees what the other writes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mmgen.runtime.base.errors import Cancelled, MmgenError
from mmgen.runtime.loop.masked_plan import MaskedPlan
from mmgen.runtime.loop.plan import Plan
from mmgen.runtime.request.prepare import Size

AnyPlan = Plan | MaskedPlan
PLANS = 4  # kept: requests of so many different sizes can alternate without being laid out again


@dataclass(eq=False)
class Loan:
    """A plan lent to one request, which may look at it until another one gets it."""

    size: Size
    lent: AnyPlan | None

    def plan(self) -> AnyPlan:
        """Return the plan.

        Raises:
            MmgenError: it has been lent to another request, or was closed.
        """
        if self.lent is None:
            raise MmgenError(
                "the state of this request was freed, or its memory is another request's",
                remedy="use the progress of an evaluation before the stream is left or another request is made",
            )
        return self.lent

    def close(self) -> None:
        """Free the plan."""
        plan, self.lent = self.lent, None
        if plan is not None:
            plan.close()


class Plans:
    """Plans by their sizes, made where none is kept that isn't lent."""

    def __init__(self, make: Callable[[Size], AnyPlan]) -> None:
        self._make = make
        self._kept: list[Loan] = []  # that ended, the least recently first
        self._lent: list[Loan] = []

    @contextmanager
    def lend(self, size: Size) -> Iterator[Loan]:
        """Lend a plan as long as the block lasts; one that an error interrupted isn't kept for the next request."""
        loan, whole = self._take(size), False
        try:
            yield loan
            whole = True
        except (Cancelled, GeneratorExit):  # which come between two evaluations
            whole = True
            raise
        finally:
            self._take_back(loan, whole)

    def __iter__(self) -> Iterator[AnyPlan]:
        return (loan.plan() for loan in (*self._kept, *self._lent))

    def close(self) -> None:
        """Free all of them, also those that are lent."""
        for loans in (self._kept, self._lent):
            while loans:
                loans.pop().close()

    def _take(self, size: Size) -> Loan:
        kept = next((loan for loan in reversed(self._kept) if loan.size == size), None)
        if kept is None:
            self._make_room(1)
            loan = Loan(size, self._make(size))
        else:
            self._kept.remove(kept)
            loan, kept.lent = Loan(size, kept.lent), None
        self._lent.append(loan)
        return loan

    def _take_back(self, loan: Loan, whole: bool) -> None:
        if loan not in self._lent:  # closed meanwhile
            return
        self._lent.remove(loan)
        if whole:
            self._kept.append(loan)
            self._make_room(0)
        else:
            loan.close()

    def _make_room(self, count: int) -> None:
        """Free what was lent least recently, until ``count`` more fit, as far as that helps."""
        while self._kept and len(self._kept) + len(self._lent) + count > PLANS:
            self._kept.pop(0).close()
