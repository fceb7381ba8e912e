"""A bundle, opened: requests in, media out.

The loop here is the same for every model, solver and backend.  It binds row i
of the solver's table to the step graph and calls it; the state moves between
two buffers, and nothing returns to the host before somebody asks for it.
"""

import os
import threading
import time
from collections.abc import Generator as Loop
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime import bundle as names
from mmgen.runtime.backend import Backend, Buffer, Runner, open_backend
from mmgen.runtime.bundle import Bundle, K, Role, TensorSpec, read_bundle
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.noise import noise as seeded_noise
from mmgen.runtime.request import Branches, branches
from mmgen.runtime.results import Progress, Result, Timings
from mmgen.runtime.solvers import table as solver_table
from mmgen.runtime.table import Table
from mmgen.runtime.text import open_tokenizer


class Generator:
    """Made by ``load``.  Calls from several threads queue; closing twice does no harm."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self._backend = backend
        self._busy = threading.Lock()
        self._owner: int | None = None  # the thread that holds the lock
        self._closed = False
        self._encoders = {
            c.name: open_tokenizer(bundle.path(names.TOKENIZER), c.length or 0, c.pad_id)
            for c in bundle.conditions
            if c.kind == "text"
        }
        self._runners: dict[Role, Runner] = {}
        roles: tuple[Role, ...] = ("condition", "step", "decode")
        for role in roles:
            if role in bundle.graphs:
                self._runners[role] = backend.runner(bundle.path(bundle.graphs[role].file))

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    def generate(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        sigmas: str | None = None,
        count: int | None = None,
        noise: NDArray[np.float32] | None = None,
        **conditions: object,
    ) -> Result:
        """Make media.

        Args:
            steps: denoising steps, at least 1; None: the bundle's default.
            guidance: weight of the asked branch; 1: no guidance.  None: the bundle's default.
            seed: of the noise, a whole number from 0.  Sample i of a seed is the same in every batch.
            solver: one of ``mmgen.runtime.solvers.SOLVERS`` that fits the bundle's process.
            sigmas: ``schedule``, ``karras`` or ``exponential``, for solvers that choose their noise levels.
            count: samples for each value of the conditions.
            noise: float32 (B, *L), in place of the seed's.
            conditions: by the bundle's names, each one value or a list of values.

        Raises:
            MmgenError: a bad argument, or latents that are not finite.
        """
        rows = self.stream(
            steps=steps,
            guidance=guidance,
            seed=seed,
            solver=solver,
            sigmas=sigmas,
            count=count,
            noise=noise,
            **conditions,
        )
        with closing(rows):
            progress = next(rows)
            while not progress.last:
                progress = next(rows)
            return progress.result()

    def stream(
        self,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        solver: str | None = None,
        sigmas: str | None = None,
        count: int | None = None,
        noise: NDArray[np.float32] | None = None,
        **conditions: object,
    ) -> Loop[Progress, None, None]:
        """The same, row by row; leaving the loop cancels.

        Arguments and errors as for ``generate``; arguments are checked before this returns.
        """
        table = self._table(solver, steps, sigmas)
        weight = self.bundle.defaults.guidance if guidance is None else guidance
        asked = branches(self.bundle, self._encoders, conditions, weight, count)
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise MmgenError("seed", got=repr(seed), wanted="a whole number from 0")
        shape = (asked.batch, *self.bundle.latent_shape)
        start = (
            seeded_noise(int(seed), asked.batch, self.bundle.latent_shape)
            if noise is None
            else _checked(noise, shape, "noise")
        )
        return self._loop(table, asked, start, int(seed))

    def decode(self, latents: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Media (B, ...) and codes (B, ...) or None, of latents float32 (B, *L)."""
        batch = len(latents) if isinstance(latents, np.ndarray) and latents.ndim else 1
        checked = _checked(latents, (batch, *self.bundle.latent_shape), "latents")
        with self._exclusive():
            return self._decode(self._backend.upload(checked))

    def close(self) -> None:
        """Free graphs and memory.  A stream that this thread has left half-way ends with it."""
        left = self._owner == threading.get_ident()  # it holds the lock for as long as somebody refers to it
        with nullcontext() if left else self._busy:
            self._closed = True
            while self._runners:
                self._runners.popitem()[1].close()
            self._backend.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One call at a time; the thread that is inside a stream would wait for itself."""
        me = threading.get_ident()
        if self._owner == me:
            raise MmgenError(
                "this generator is inside a stream",
                remedy="finish or close the stream first, or load a second generator",
            )
        with self._busy:
            if self._closed:
                raise MmgenError("this generator is closed", remedy="load the bundle again")
            self._owner = me
            try:
                yield
            finally:
                self._owner = None

    def _table(self, solver: str | None, steps: int | None, sigmas: str | None) -> Table:
        defaults = self.bundle.defaults
        own = solver in (None, defaults.solver)  # the defaults beside the solver are for that solver alone
        if sigmas is None:
            sigmas = defaults.sigmas if own else "schedule"
        return solver_table(
            defaults.solver if solver is None else solver,
            self.bundle.process,
            defaults.steps if steps is None else steps,
            sigmas=sigmas,  # type: ignore[arg-type]  # checked there
            options=defaults.solver_options if own else {},
        )

    def _loop(self, table: Table, asked: Branches, start: NDArray[np.float32], seed: int) -> Loop[Progress, None, None]:
        with self._exclusive():
            timings, clock = Timings(), time.perf_counter()
            step, backend = self._runners["step"], self._backend
            conditioning = self._conditioning(asked)
            timings.condition = time.perf_counter() - clock
            initial = np.zeros((K, *start.shape), np.float32)
            np.multiply(start, table.initial_scale, out=initial[0], casting="same_kind")
            states = [backend.upload(initial), backend.empty(initial.shape, "float32")]
            x0 = backend.empty(start.shape, "float32")
            noises = self._noises(table, start.shape, seed)
            rows = {
                names.TRANSITION: backend.upload(table.transition),
                names.PREDICTION: backend.upload(table.prediction),
                names.X0_LIMIT: backend.upload(table.x0_limit[:, None]),
                names.INPUT_SCALE: backend.upload(table.input_scale[:, None]),
                names.TIMESTEP: backend.upload(table.timestep[:, None]),
            }
            fixed = {**conditioning, names.GUIDANCE: backend.upload(asked.weights), names.X0: x0}
            for i in range(len(table)):
                clock = time.perf_counter()
                state = states[(i + 1) % 2]
                step.bind(
                    {
                        **fixed,
                        **{name: values[i] for name, values in rows.items()},
                        names.NOISE: noises[i],
                        names.STATE: states[i % 2],
                        names.NEXT_STATE: state,
                    }
                )()
                timings.steps.append(time.perf_counter() - clock)
                yield self._progress(i + 1, len(table), state, x0, timings)
                if self._closed:
                    raise MmgenError("this generator was closed inside a stream", remedy="load the bundle again")

    def _progress(self, row: int, rows: int, state: Buffer, x0: Buffer, timings: Timings) -> Progress:
        def result() -> Result:
            latents = self._backend.read(state[0])
            if not np.isfinite(latents).all():
                raise MmgenError(
                    f"the latents are not finite after row {row} of {rows}",
                    remedy="mmgen verify tells whether the bundle or the request is at fault",
                )
            clock = time.perf_counter()
            media, codes = self._decode(state[0])
            timings.decode = time.perf_counter() - clock
            return Result(media, latents, codes, timings)

        return Progress(row, rows, timings, lambda: self._backend.read(state[0]), lambda: self._decode(x0)[0], result)

    def _conditioning(self, asked: Branches) -> dict[str, Buffer]:
        """What the denoiser is conditioned on, each (G, B, ...)."""
        guides = len(asked.weights)
        inputs = {name: self._backend.upload(array) for name, array in asked.inputs.items()}
        made = self._run("condition", inputs, guides * asked.batch, "R") if "condition" in self._runners else inputs
        return {name: buffer.reshape((guides, asked.batch, *buffer.shape[1:])) for name, buffer in made.items()}

    def _noises(self, table: Table, shape: tuple[int, ...], seed: int) -> list[Buffer]:
        """A buffer a row; rows that use no noise share one of zeros."""
        zeros = self._backend.upload(np.zeros(shape, np.float32))
        return [
            self._backend.upload(seeded_noise(seed, shape[0], shape[1:], stream=i + 1)) if used else zeros
            for i, used in enumerate(table.stochastic)
        ]

    def _decode(self, latents: Buffer) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        made = self._run("decode", {names.LATENTS: latents}, latents.shape[0], "B")
        codes = self._backend.read(made[names.CODES]) if names.CODES in made else None
        return self._backend.read(made[names.MEDIA]), codes

    def _run(self, role: Role, inputs: dict[str, Buffer], size: int, axis: str) -> dict[str, Buffer]:
        """Run a graph with one named axis into fresh buffers."""
        outputs = {
            s.name: self._backend.empty(_shape(s, {axis: size}), s.dtype) for s in self.bundle.graphs[role].outputs
        }
        self._runners[role].bind({**inputs, **outputs})()
        return outputs


def load(
    folder: str | os.PathLike[str], backend: str = "auto", *, threads: int | None = None, verify: bool = True
) -> Generator:
    """Open a bundle.

    Args:
        folder: the ``.mmgen`` folder.
        backend: ``auto`` or a name of ``mmgen.runtime.backend.NAMES``.
        threads: for CPU backends; None: one a core.
        verify: compare every file with its hash first.

    Raises:
        MmgenError: not a whole bundle, or a backend that can't be had.
    """
    return Generator(read_bundle(folder, verify=verify), open_backend(backend, threads))


def _shape(spec: TensorSpec, axes: dict[str, int]) -> tuple[int, ...]:
    return tuple(axes[n] if isinstance(n, str) else n for n in spec.shape)


def _checked(array: NDArray[np.float32], shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float32:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise MmgenError(name, got=got, wanted=f"float32 {shape}")
    if not np.isfinite(array).all():
        raise MmgenError(name, got="NaN or infinity", wanted="finite numbers")
    return array
