"""What CUDA's events and NVIDIA's profilers are told of each call of a graph: a backend whose calls are watched.

A bundle that nobody watches is loaded as ever: no CUDA, no NVTX, nothing between the loop and its calls.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from mmgen.runtime.backends.cuda import Device, Event
from mmgen.runtime.backends.memory import Slot
from mmgen.runtime.backends.protocol import Backend, Block, Call, Runner
from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.generator import Generator, generator_of
from mmgen.runtime.storage.schema import Bundle, Role

DOMAIN = "mmgen"  # of the ranges, in a profiler
PARTS = {"step": "evaluation"}  # what a part of a request is called, where not as its graph


class Watch:
    """Ranges for a profiler, where it is asked for; and on CUDA the GPU time of calls, while a request is timed."""

    def __init__(self, nvtx: Any | None) -> None:
        self._device: Device | None = None
        self._nvtx = nvtx
        self._timed = False
        self._spare: list[Event] = []
        self._marked: list[tuple[str, Event, Event]] = []

    def over(self, backend: Backend) -> Backend:
        """Return a backend that is watched, where there is CUDA or a profiler is to be told; else the backend."""
        self._device = getattr(backend, "device", None)
        return WatchedBackend(backend, self) if self._device or self._nvtx else backend

    @property
    def on_cuda(self) -> bool:
        """Whether there is GPU time to ask for."""
        return self._device is not None

    @contextmanager
    def request(self, *, timed: bool) -> Iterator[None]:
        """Watch a request; timed: take the GPU time of its calls, where there is one."""
        self._timed = timed and self.on_cuda
        try:
            with self._range("request"):
                yield
        finally:
            self._timed = False

    @contextmanager
    def call(self, what: str) -> Iterator[None]:
        """Watch a call of a graph."""
        with self._range(what):
            start = self._mark() if self._timed else None
            yield
            if start is not None:
                self._marked.append((PARTS.get(what, what), start, self._mark()))

    def taken(self) -> dict[str, tuple[float, ...]]:
        """Return the seconds of each call since it was asked last, by part, when all of them are done.

        They are the device's, between what was enqueued before a graph and after it; where the device waits for the
        host to enqueue more, that is in them.
        """
        if self._device is None or not self._marked:
            return {}
        self._device.wait()
        seconds: dict[str, tuple[float, ...]] = {}
        for part, start, end in self._marked:
            seconds[part] = (*seconds.get(part, ()), self._device.seconds(start, end))
            self._spare += (start, end)
        self._marked.clear()
        return seconds

    def _mark(self) -> Event:
        assert self._device is not None
        self._device.use()
        event = self._spare.pop() if self._spare else self._device.event(timed=True)
        self._device.mark(event)
        return event

    def _range(self, what: str) -> AbstractContextManager[object]:
        if self._nvtx is None:
            return nullcontext()
        found: AbstractContextManager[object] = self._nvtx.annotate(what, domain=DOMAIN)
        return found


@dataclass(frozen=True)
class WatchedCall:
    """A call of a graph, watched; ``plain`` is the call itself."""

    plain: Call
    what: str
    watch: Watch

    def __call__(self) -> None:
        with self.watch.call(self.what):
            self.plain()


class WatchedRunner:
    """A runner whose calls are watched."""

    def __init__(self, runner: Runner, role: Role, watch: Watch) -> None:
        self._runner, self._role, self._watch = runner, role, watch

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        return [WatchedCall(call, self._role, self._watch) for call in self._runner.bind(block, calls)]

    def close(self) -> None:
        self._runner.close()


class WatchedBackend:
    """A backend whose runners' calls are watched; what it records as one is watched as one, ``loop``."""

    def __init__(self, backend: Backend, watch: Watch) -> None:
        self.name = backend.name
        self._backend, self._watch = backend, watch

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        return self._backend.block(host_bytes, other_bytes)

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        return WatchedRunner(self._backend.runner(bundle, role), role, self._watch)

    def record(self, calls: Sequence[Call]) -> Call | None:
        recorded = self._backend.record([call.plain if isinstance(call, WatchedCall) else call for call in calls])
        return recorded and WatchedCall(recorded, "loop", self._watch)

    def wait(self) -> None:
        self._backend.wait()

    def close(self) -> None:
        self._backend.close()


@contextmanager
def watched_generator(
    bundle: Bundle, backend: str, threads: int | None, nvtx: bool
) -> Iterator[tuple[Generator, Watch]]:
    """Load a bundle that was verified, and watch it where there is CUDA or a profiler is to be told.

    Raises:
        MmgenError: a backend that can't be had, or ``nvtx`` without its package.
    """
    watch = Watch(import_nvtx() if nvtx else None)
    with generator_of(bundle, backend, threads, watch.over) as generator:
        yield generator, watch


def import_nvtx() -> Any:
    """Import NVIDIA's package for ranges in profiles.

    Raises:
        MmgenError: it isn't here.
    """
    try:
        import nvtx
    except (ImportError, OSError) as error:
        raise unloaded("NVTX", error, extra("profiling")) from error
    return nvtx
