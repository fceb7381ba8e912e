"""A bundle, opened: requests in, media out."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.protocol import Backend
from mmgen.runtime.backends.registry import check_backend, open_backend
from mmgen.runtime.base.choices import chosen, either
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.fork import keep_in_children
from mmgen.runtime.base.numbers import whole
from mmgen.runtime.loop.fit import check_decoding
from mmgen.runtime.loop.opened import Open, Opened
from mmgen.runtime.loop.results import Result
from mmgen.runtime.loop.stream import Flag, Stream
from mmgen.runtime.loop.turns import Cancel, Turns, check_cancel
from mmgen.runtime.request.branches import MOST
from mmgen.runtime.request.checks import checked_latents
from mmgen.runtime.request.conditions import values
from mmgen.runtime.request.prepare import Prepared
from mmgen.runtime.request.request import REQUESTED, Request
from mmgen.runtime.storage.bundle import AnyPath, embedded, output_of, read_bundle
from mmgen.runtime.storage.schema import Bundle


class Generator:
    """Made by ``load``.

    Any thread may call it.  Calls run one after the other in the order in which they came, a stream's evaluations each
    as a call of its own, so between two of them other requests are served.  Closing twice does no harm.  In a process
    that was forked from the one that loaded it, every call is an error, and closing it does nothing.

    A bundle's default output is opened when it is loaded, and each other one by the first call that names it.
    """

    def __init__(self, bundle: Bundle, backend: Backend, open_other: Open | None = None) -> None:
        """Take over a backend that was opened for the bundle, or the output of it that is to be the default.

        Args:
            open_other: opens a backend for another output; None: the bundle has one.
        """
        self.bundle = bundle
        self.backend = backend.name  # of the default output
        self._turns, self._open_other = Turns(), open_other
        self._opened = {bundle.output: Opened(bundle, backend, self._turns)}
        keep_in_children(self)

    def generate(
        self,
        what: str | Request | None = None,
        request: Request | None = None,
        /,
        *,
        cancel: Cancel | None = None,
        **given: object,
    ) -> Result:
        """Make media.

        Args:
            what: the output to make; None: that of the request, or the bundle's default.  Or a request.
            request: what to make it from, and how; None: the other arguments say it.
            cancel: a ``threading.Event`` that another thread may set, or anything with its ``is_set``: the request ends
                before its next evaluation of the denoiser.  Evaluations then run one by one, since a loop that was
                recorded as one call can't be ended early.
            given: the attributes of ``Request``, in place of the request's own, such as ``steps=20``; and conditions as
                arguments of their own, where their names aren't those of attributes: ``generate(prompt="a cat")``.
                Inputs called image, latents, mask or noise go before the attributes of these names.

        Raises:
            Cancelled: ``cancel`` was set.
            MmgenError: a bad argument, latents that are not finite, a device that fails, or the generator was closed,
                also while the request waited or ran.
        """
        started = time.perf_counter()
        opened, prepared = self._prepared(what, request, given)
        check_cancel(cancel)
        return self._turns.run(lambda: opened.session.run(prepared, started, cancel), cancel)

    def stream(self, what: str | Request | None = None, request: Request | None = None, /, **given: object) -> Stream:
        """Make media evaluation by evaluation; leaving the loop cancels, and so does ``Stream.cancel`` in any thread.

        Arguments and errors as for ``generate``; arguments are checked before this returns, and a deadline's time runs
        from here and includes other requests between the evaluations.
        """
        clock = time.perf_counter()
        return self._stream(*self._prepared(what, request, given), clock)

    def embed(self, **given: object) -> NDArray[np.float32]:
        """Embed an input for retrieval: ``embed(photo="cat.jpg")``.

        Args:
            given: one input of the bundle that has an embedding, by its name: one value, or a list of n; and
                ``resize``, as of ``Request``.

        Returns:
            float32 (n, D), each of length 1: the product of two is the cosine of the angle between them.

        Raises:
            MmgenError: not one input, one without an embedding, or a value that it doesn't take.
        """
        resize = given.pop("resize", False)
        homes = embedded(self.bundle)
        if len(given) != 1 or (name := next(iter(given))) not in homes:
            got = " and ".join(given) or "nothing"
            wanted = f"one of {either(sorted(homes))}" if homes else "a bundle with embeddings"
            raise MmgenError("embed", got=got, wanted=wanted)
        opened = self._open(homes[name][1].output)
        each = opened.inputs[name]
        features = each.encode(values(each.condition, given[name], resize=bool(resize)))
        return self._turns.run(lambda: opened.session.embedding(name, features))

    def decode(self, latents: NDArray[Any], output: str | None = None) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode latents float32 (B, *L), or codes int64 (B, *L), to media (B, ...) and codes (B, ...) or None."""
        batch = max(len(latents), 1) if isinstance(latents, np.ndarray) and latents.ndim else 1
        opened = self._open(output)
        given = checked_latents(opened.bundle, latents, batch)
        check_decoding(opened.bundle, opened.session.backend.name, batch)
        return self._turns.run(lambda: opened.session.decode(given))

    def forget(self, *graphs: Literal["condition", "timestep"]) -> None:
        """Have the next requests run these graphs, even if what they compute is there already from the last one."""
        for graph in graphs:
            chosen("graph", graph, ("condition", "timestep"))
        for opened in list(self._opened.values()):
            self._turns.run(partial(opened.session.forget, *graphs))

    def warm_up(self, batch: int = 1, steps: int | None = None, output: str | None = None) -> None:
        """Make a request that nobody sees, so that the first real one of its size is as fast as the next.

        Memory is laid out, each graph but ``encode`` runs for these shapes, and the loop is recorded where the backend
        does so.  The size is that of a request with the bundle's default guidance and solver.

        Args:
            batch: samples, at least 1.
            steps: denoising steps, at least 1; None: the bundle's default.
            output: which of the bundle's outputs; None: its default.

        Raises:
            MmgenError: as ``generate``.
        """
        from mmgen.runtime.request.example import example

        count = whole("batch", batch, "a whole number, at least 1", 1, MOST)
        bundle = output_of(self.bundle, output)
        self.generate(bundle.output, example(bundle), count=count, steps=steps)

    def close(self) -> None:
        """Free graphs and memory, from any thread, also inside a stream.

        Requests that wait end with an error, and so do running ones and streams before their next evaluation; it
        returns when the running one has ended.  Inside a call of the same thread, such as in a signal handler, it
        returns at once, and everything is freed at the end of that call.
        """
        self._turns.close(self._close)

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, opened: Opened, prepared: Prepared, clock: float) -> Stream:
        cancel = Flag()
        return Stream(self._turns, opened.session.evaluations(prepared, clock, cancel), cancel)

    def _prepared(
        self, what: str | Request | None, request: Request | None, given: dict[str, object]
    ) -> tuple[Opened, Prepared]:
        if isinstance(what, Request) and request is None:
            what, request = None, what
        if what is None and "output" not in given:
            what = request.output if isinstance(request, Request) else None
        elif what is not None and not isinstance(what, str):
            raise MmgenError("request", got=shown(what), wanted=f"the name of an output, or {REQUESTED}")
        opened = self._open(what if what is not None else given.get("output"))
        return opened, opened.prepare(request, {**given, "output": opened.bundle.output})

    def _open(self, output: object) -> Opened:
        """Return an output, opened; None: the default one."""
        bundle = output_of(self.bundle, output)
        if (found := self._opened.get(bundle.output)) is None:
            found = self._turns.run(partial(self._open_in_turn, bundle))
        return found

    def _open_in_turn(self, bundle: Bundle) -> Opened:
        if bundle.output not in self._opened:  # another thread may have opened it meanwhile
            assert self._open_other is not None
            backend = self._open_other(bundle)
            try:
                self._opened[bundle.output] = Opened(bundle, backend, self._turns)
            except BaseException:
                backend.close()
                raise
        return self._opened[bundle.output]

    def _close(self) -> None:
        while self._opened:
            self._opened.popitem()[1].session.close()


def every_evaluation(generator: Generator, **given: object) -> Stream:
    """Make media as ``stream`` does, but leave out no evaluation: for comparisons, one by one, with another program."""
    clock = time.perf_counter()
    opened, prepared = generator._prepared(None, None, given)
    return generator._stream(opened, replace(prepared, every=True), clock)


def load(
    folder: AnyPath,
    backend: str = "auto",
    *,
    threads: int | None = None,
    verify: bool = True,
    build: bool = False,
    public_key: AnyPath | None = None,
    output: str | None = None,
) -> Generator:
    """Open a bundle.

    Args:
        folder: the ``.mmgen`` folder.
        backend: ``auto`` or a name of ``mmgen generate --help``.
        threads: for CPU backends; None: one a core.
        verify: compare every file with its hash first.
        build: make TensorRT engines for this device first if none fit, or optimised graphs for ``ort-cpu``, as
            ``mmgen build`` does; it may take minutes, and never happens unless requested.
        public_key: the file of a key that the bundle and its engines must be signed with, by ``mmgen sign``.
        output: what requests get that name none; None: the bundle's own default.

    Raises:
        MmgenError: not a complete bundle, one that isn't signed with the key, or a backend that can't be opened.
    """
    threads = check_backend(backend, threads)  # before the slow part
    if build and public_key is not None:
        remedy = "build, sign with mmgen sign, and then load"
        raise MmgenError("what is built here is not signed yet, and only what is signed was asked for", remedy=remedy)
    bundle = output_of(read_bundle(folder, verify=verify, public_key=public_key), output)
    if build:
        from mmgen.runtime.building import ensure_built  # starts processes and looks for devices

        ensure_built(bundle, backend)
    return generator_of(bundle, backend, threads)


def generator_of(
    bundle: Bundle,
    backend: str,
    threads: int | None,
    over: Callable[[Backend], Backend] = lambda opened: opened,
) -> Generator:
    """Open a bundle, or an output of one, that has been read.

    Args:
        bundle: as read; it is not compared with its hashes again.
        backend, threads: as for ``load``.
        over: returns what is to be used in place of each backend that is opened, and closes it.

    Raises:
        MmgenError: a backend that can't be opened.
    """
    opened = open_backend(backend, bundle, threads)
    try:
        return Generator(bundle, over(opened), lambda other: over(open_backend(backend, other, threads)))
    except BaseException:
        opened.close()
        raise
