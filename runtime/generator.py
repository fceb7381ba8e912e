"""A bundle, opened: requests in, media out."""

import time
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.protocol import Backend
from mmgen.runtime.backends.registry import check_backend, open_backend
from mmgen.runtime.base.choices import chosen
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.fork import keep_in_children
from mmgen.runtime.base.numbers import whole
from mmgen.runtime.loop.fit import check_decoding, check_for
from mmgen.runtime.loop.results import Result
from mmgen.runtime.loop.session import Session
from mmgen.runtime.loop.stream import Flag, Stream
from mmgen.runtime.loop.turns import Cancel, Turns, check_cancel
from mmgen.runtime.request.branches import MOST
from mmgen.runtime.request.checks import checked_latents
from mmgen.runtime.request.conditions import open_inputs
from mmgen.runtime.request.prepare import Prepared, prepare
from mmgen.runtime.request.request import Request, read_request
from mmgen.runtime.storage.bundle import AnyPath, read_bundle
from mmgen.runtime.storage.schema import Bundle


class Generator:
    """Made by ``load``.

    Any thread may call it.  Calls run one after the other in the order in which they came, a stream's evaluations each
    as a call of its own, so between two of them other requests are served.  Closing twice does no harm.  In a process
    that was forked from the one that loaded it, every call is an error, and closing it does nothing.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._turns = Turns()
        self._inputs = open_inputs(bundle)
        self._fits = check_for(bundle, backend.name)
        self._session = Session(bundle, backend, self._turns)
        keep_in_children(self)

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._session.backend.name

    def generate(self, request: Request | None = None, /, *, cancel: Cancel | None = None, **given: object) -> Result:
        """Make media.

        Args:
            request: what to make; None: the other arguments say it.
            cancel: a ``threading.Event`` that another thread may set, or anything with its ``is_set``: the request ends
                before its next evaluation of the denoiser.  Evaluations then run one by one, since a loop that was
                recorded as one call can't be ended early.
            given: the attributes of ``Request``, in place of the request's own, such as ``steps=20``; and conditions as
                arguments of their own, where their names aren't those of attributes: ``generate(prompt="a cat")``.

        Raises:
            Cancelled: ``cancel`` was set.
            MmgenError: a bad argument, latents that are not finite, a device that fails, or the generator was closed,
                also while the request waited or ran.
        """
        started = time.perf_counter()
        prepared = self._prepared(request, given)
        check_cancel(cancel)
        return self._turns.run(lambda: self._session.run(prepared, started, cancel), cancel)

    def stream(self, request: Request | None = None, /, **given: object) -> Stream:
        """Make media evaluation by evaluation; leaving the loop cancels, and so does ``Stream.cancel`` in any thread.

        Arguments and errors as for ``generate``; arguments are checked before this returns, and a deadline's time runs
        from here and includes other requests between the evaluations.
        """
        clock = time.perf_counter()
        prepared, cancel = self._prepared(request, given), Flag()
        return Stream(self._turns, self._session.evaluations(prepared, clock, cancel), cancel)

    def decode(self, latents: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode latents float32 (B, *L), or codes int64 (B, *L), to media (B, ...) and codes (B, ...) or None."""
        batch = max(len(latents), 1) if isinstance(latents, np.ndarray) and latents.ndim else 1
        given = checked_latents(self.bundle, latents, batch)
        check_decoding(self.bundle, self.backend, batch)
        return self._turns.run(lambda: self._session.decode(given))

    def forget(self, *graphs: Literal["condition", "timestep"]) -> None:
        """Have the next requests run these graphs, even if what they compute is there already from the last one."""
        for graph in graphs:
            chosen("graph", graph, ("condition", "timestep"))
        self._turns.run(lambda: self._session.forget(*graphs))

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
        self.generate(example(self.bundle), count=count, steps=steps)

    def close(self) -> None:
        """Free graphs and memory, from any thread, also inside a stream.

        Requests that wait end with an error, and so do running ones and streams before their next evaluation; it
        returns when the running one has ended.  Inside a call of the same thread, such as in a signal handler, it
        returns at once, and everything is freed at the end of that call.
        """
        self._turns.close(self._session.close)

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepared(self, request: Request | None, given: dict[str, object]) -> Prepared:
        combined = read_request(self.bundle, self._inputs, request, given)
        return prepare(self.bundle, self._inputs, combined, self._fits)


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
        backend: ``auto`` or a name of ``mmgen generate --help``.
        threads: for CPU backends; None: one a core.
        verify: compare every file with its hash first.
        build: make TensorRT engines for this device first if none fit, or optimised graphs for ``ort-cpu``, as
            ``mmgen build`` does; it may take minutes, and never happens unless requested.
        public_key: the file of a key that the bundle and its engines must be signed with, by ``mmgen sign``.

    Raises:
        MmgenError: not a complete bundle, one that isn't signed with the key, or a backend that can't be opened.
    """
    threads = check_backend(backend, threads)  # before the slow part
    if build and public_key is not None:
        remedy = "build, sign with mmgen sign, and then load"
        raise MmgenError("what is built here is not signed yet, and only what is signed was asked for", remedy=remedy)
    bundle = read_bundle(folder, verify=verify, public_key=public_key)
    if build:
        from mmgen.runtime.building import ensure_built  # starts processes and looks for devices

        ensure_built(bundle, backend)
    opened = open_backend(backend, bundle, threads)
    try:
        return Generator(bundle, opened)
    except BaseException:
        opened.close()
        raise
