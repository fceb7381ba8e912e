"""The memory of a request and the graphs bound to it, kept so that the next request of that size only writes and runs.

All tensors of a request lie in one block.  What the host writes comes first and goes to the device in one copy: the
start, the rows of the solver's table, the guidance weights, the noise and the conditions.  The state alternates between
two slots, evaluation i reads its numbers at their offsets, and nothing returns before somebody reads it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Layout, Slot, stacked
from mmgen.runtime.backends.protocol import Backend, Block, Call, Runner
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.loop.invariants import Invariants, Runners
from mmgen.runtime.request.prepare import Prepared, Size, first_state, noises
from mmgen.runtime.solvers.masked_reference import ended
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.schema import Bundle, shape_of
from mmgen.runtime.storage.tensors import K

ROWS = {  # shapes of the step graph's inputs from a row of the table, float32
    names.TRANSITION: (K, K + 3),
    names.PREDICTION: (2,),
    names.X0_LIMIT: (1,),
    names.INPUT_SCALE: (1,),
    names.TIMESTEP: (1,),
    names.NEXT_LEVEL: (2,),
}


class Decoding:
    """Latents in a block, to media and codes; without a graph for it, codes are the media."""

    def __init__(self, bundle: Bundle, runner: Runner | None, layout: Layout, batch: int) -> None:
        self._runner, self._end = runner, bundle.media.end_id
        graph = bundle.graphs.get("decode")
        self._input = graph.inputs[0].name if graph else ""  # latents, or codes
        specs = graph.outputs if graph else ()
        self._outputs = {spec.name: layout.slot(shape_of(spec, {"B": batch}), spec.dtype) for spec in specs}
        self._calls: dict[Slot, Call] = {}

    def bind(self, block: Block, *latents: Slot) -> None:
        """Bind the graph to every slot that will be decoded."""
        if self._runner is None:
            self._calls = dict.fromkeys(latents, _nothing)
            return
        calls = self._runner.bind(block, [{self._input: slot, **self._outputs} for slot in latents])
        self._calls = dict(zip(latents, calls, strict=True))

    def __call__(self, block: Block, latents: Slot) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode to media (B, ...) and codes (B, ...), or None where there is no codebook."""
        if latents not in self._calls:
            raise MmgenError("the memory of this request was freed", remedy="make the request again")
        self._calls[latents]()
        made = [self._outputs[name] for name in (names.MEDIA, names.CODES) if name in self._outputs]
        media, *codes = block.read(*(made or [latents]))
        return ended(media, self._end), codes[0] if codes else None

    def forget(self) -> None:
        """Release the graph."""
        self._calls = {}


def _nothing() -> None:
    """Run nothing: codes that are the media are where they should be."""


class Plan:
    """Made for one ``Size``; owns its block."""

    def __init__(self, bundle: Bundle, backend: Backend, runners: Runners, size: Size) -> None:
        self._backend = backend
        latents = (size.batch, *bundle.latent_shape)
        layout = Layout()
        self._states = [layout.slot((K, *latents))]
        count = len(size.stochastic)
        step = {spec.name: spec for spec in bundle.graphs["step"].inputs}
        self._rows = {name: layout.slots(count, shape) for name, shape in ROWS.items() if name in step}
        self._rescale = layout.slots(count, (1,))
        self._guidance, self._one = layout.slot((size.guides,)), layout.slot((1,))
        self._known, self._keep = layout.slot((2, *latents)), layout.slot(latents)
        self._no_noise = layout.slot(latents)
        self._noises = [layout.slot(latents) if used else self._no_noise for used in size.stochastic]
        axes = {"B": size.batch, "G": size.guides, "R": size.guides * size.batch, "N": count}
        self.invariants = Invariants(bundle, layout, axes)
        self._states.append(layout.slot((K, *latents)))
        self._x0 = layout.slot(latents)
        self._decode = Decoding(bundle, runners.get("decode"), layout, size.batch)

        self._block = backend.block(self.invariants.host_bytes, layout.bytes - self.invariants.host_bytes)
        try:  # the step graph first: it knows B from G, which makes for better refusals
            guidance = {False: self._guidance, True: self._one}

            def slots_of(i: int, alone: bool) -> dict[str, Slot]:
                """Return the slots of evaluation ``i``; alone: of all branches the first, in the same memory."""
                grouped = self.invariants.of_row(i, step)
                if alone:
                    branched = [name for name in grouped if step[name].shape[0] == "G"]
                    grouped |= {name: grouped[name].part(0, 1) for name in branched}
                return {
                    **grouped,
                    names.GUIDANCE: guidance[alone],
                    **{name: slots[i] for name, slots in self._rows.items()},
                    names.RESCALE: self._rescale[i],
                    names.NOISE: self._noises[i],
                    names.KNOWN: self._known,
                    names.KEEP: self._keep,
                    names.STATE: self._states[i % 2],
                    names.NEXT_STATE: self._states[(i + 1) % 2],
                    names.X0: self._x0,
                }

            bound: dict[int, Call] = {}
            for kind in sorted(set(size.alone)):  # calls that are bound at once have the same shapes
                chosen = [i for i, alone in enumerate(size.alone) if alone == kind]
                calls = runners["step"].bind(self._block, [slots_of(i, kind) for i in chosen])
                bound |= zip(chosen, calls, strict=True)
            self.steps = [bound[i] for i in range(count)]
            self.invariants.bind(self._block, runners)
            self._decode.bind(self._block, self._states[0][0], self._states[1][0], self._x0)
        except BaseException:
            self._block.close()
            raise
        self._loop: Call | None = None
        self._recorded = False

    def write(self, prepared: Prepared) -> None:
        """Write a request of this size for the device; only what changed since the last one is copied."""
        host, table, start = self._block.host, prepared.table, first_state(prepared)
        state = self._states[0].of(host)
        state[1:] = 0
        state[0] = start.state
        self._keep.of(host)[:] = 0 if start.keep is None else start.keep
        if start.keep is not None:
            self._known.of(host)[:] = start.known
        for name, slots in self._rows.items():
            stacked(host, slots)[:] = getattr(table, name).reshape(len(slots), *slots[0].shape)
        stacked(host, self._rescale)[:] = prepared.rescale[:, None]
        self._guidance.of(host)[:] = prepared.branches.weights
        self._one.of(host)[:] = 1
        self._no_noise.of(host)[:] = 0
        for i, noise in noises(prepared).items():
            self._noises[i].of(host)[:] = noise
        self.invariants.write(self._block, table.timestep, prepared.branches.inputs)

    def loop(self) -> Call | None:
        """Return all evaluations as one call if the backend can record them; made once, after a request was written."""
        if not self._recorded:
            self._loop, self._recorded = self._backend.record(self.steps), True
            self._block.upload()  # running it to record may have overwritten the start
        return self._loop

    def latents(self, done: int) -> NDArray[np.float32]:
        """Copy the latents (B, *L) after ``done`` evaluations."""
        (latents,) = self._block.read(self._states[done % 2][0])
        return latents

    def decode(self, done: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode the latents after ``done`` evaluations to media and codes."""
        return self._decode(self._block, self._states[done % 2][0])

    def preview(self) -> NDArray[Any]:
        """Decode the denoiser's prediction in the last evaluation to media."""
        return self.decode_x0()[0]

    def x0(self) -> NDArray[np.float32]:
        """Copy the latents (B, *L) that the denoiser predicted in the last evaluation."""
        (latents,) = self._block.read(self._x0)
        return latents

    def decode_x0(self) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode these to media and codes."""
        return self._decode(self._block, self._x0)

    def close(self) -> None:
        """Free the memory; nothing of this plan may be called afterwards."""
        self._loop, self.steps = None, []
        self.invariants.close()
        self._decode.forget()
        self._block.close()
