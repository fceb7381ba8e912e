"""A compiler's progress, from the nested phases that it reports."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

LEAST = 0.01  # of the whole, between two reports


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Nested phases as one fraction that never shrinks; called from any thread."""

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._phases: dict[str, _Phase] = {}  # those under way; their names are unique
        self._reported = 0.0
        self._lock = threading.Lock()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        with self._lock:
            if name in self._phases:
                self._phases[name].done = step + 1
            roots = [n for n, phase in self._phases.items() if phase.parent not in self._phases]
            fraction = max(map(self._fraction, roots), default=0.0)
            if fraction >= self._reported + LEAST:
                self._reported = fraction
                self._report(fraction)

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inside = max((self._fraction(n) for n, p in self._phases.items() if p.parent == name), default=0.0)
        return min((phase.done + inside) / phase.steps, 1.0)


def monitor(library: ModuleType, report: Callable[[float], None]) -> Any:
    """Return an IProgressMonitor that reports a fraction; its base class comes with the library."""
    phases = Phases(report)

    class Monitor(library.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True  # go on

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
