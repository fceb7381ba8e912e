"""The memory of a request for tokens, laid out and bound as ``plan`` does it for latents, with the same methods."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Layout, Slot, stacked
from mmgen.runtime.backends.protocol import Backend, Call
from mmgen.runtime.loop.invariants import Invariants, Runners
from mmgen.runtime.loop.plan import Decoding
from mmgen.runtime.request.prepare import Prepared, Size, first_state, noises
from mmgen.runtime.request.tokens import checked_tokens
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle

ROWS = {  # shapes of a row's inputs to the step graph, float32
    names.SHARPNESS: (1,),
    names.TOP_K: (1,),
    names.CONFIDENCE: (2,),
    names.MASKED: (1,),
    names.STAY: (1,),
    names.WINDOW: (1,),
    names.REDRAW: (1,),
}


class MaskedPlan:
    """Made for one ``Size``; owns its block.  All branches run in every row."""

    def __init__(self, bundle: Bundle, backend: Backend, runners: Runners, size: Size) -> None:
        assert isinstance(bundle.process, Masked)
        self._backend, self._process = backend, bundle.process
        places, rows = (size.batch, *bundle.latent_shape), len(size.stochastic)
        layout = Layout()
        self._tokens = layout.slots(2, places, "int64")
        step = {spec.name: spec for spec in bundle.graphs["step"].inputs}
        shapes = {**ROWS, names.TIMESTEP: (1,)}
        self._rows = {name: layout.slots(rows, shape) for name, shape in shapes.items() if name in step}
        self._uniforms = {name: [layout.slot(places) for _ in range(rows)] for name in (names.CHOICE, names.ORDER)}
        self._guidance = layout.slot((size.guides,))
        axes = {"B": size.batch, "G": size.guides, "R": size.guides * size.batch, "N": rows}
        self.invariants = Invariants(bundle, layout, axes)
        self._codes = layout.slot(places, "int64")
        self._decode = Decoding(bundle, runners["decode"], layout, size.batch)

        self._block = backend.block(self.invariants.host_bytes, layout.bytes - self.invariants.host_bytes)
        try:

            def row(i: int) -> dict[str, Slot]:
                """What a row of the table reads and writes."""
                return {
                    **self.invariants.of_row(i, step),
                    **{name: slots[i] for name, slots in (self._rows | self._uniforms).items()},
                    names.GUIDANCE: self._guidance,
                    names.TOKENS: self._tokens[i % 2],
                    names.NEXT_TOKENS: self._tokens[(i + 1) % 2],
                    names.CODES: self._codes,
                }

            self.steps = runners["step"].bind(self._block, [row(i) for i in range(rows)])
            self.invariants.bind(self._block, runners)
            self._decode.bind(self._block, self._codes)
        except BaseException:
            self._block.close()
            raise
        self._loop: Call | None = None
        self._recorded = False

    def write(self, prepared: Prepared) -> None:
        """Give the device a request of this size.  What is started from is kept, but for the masks."""
        host, table = self._block.host, prepared.table
        self._tokens[0].of(host)[:] = first_state(prepared).state
        for name, slots in self._rows.items():
            stacked(host, slots)[:] = getattr(table, name).reshape(len(slots), *slots[0].shape)
        for row, uniforms in noises(prepared).items():
            self._uniforms[names.CHOICE][row].of(host)[:] = uniforms[:, 0]
            self._uniforms[names.ORDER][row].of(host)[:] = uniforms[:, 1]
        self._guidance.of(host)[:] = prepared.branches.weights
        self.invariants.write(self._block, table.timestep, prepared.branches.inputs)

    def loop(self) -> Call | None:
        """All rows as one call, where the backend has such a thing.  It is made once, after a request was written."""
        if not self._recorded:
            self._loop, self._recorded = self._backend.record(self.steps), True
            self._block.upload()  # what was run to record may have written over the start
        return self._loop

    def resume(self, row: int, tokens: NDArray[np.int64]) -> None:
        """Put tokens (B, *L), with masks, in the place of those after ``row`` rows.

        Raises:
            MmgenError: another shape or type, or a number that is neither a code nor a mask.
        """
        slot, last = self._tokens[row % 2], self._tokens[-1]
        slot.of(self._block.host)[:] = checked_tokens(tokens, slot.shape, self._process)
        self._block.upload(last.offset + last.bytes)

    def latents(self, row: int) -> NDArray[np.int64]:
        """A copy of the tokens (B, *L) after ``row`` rows, with masks."""
        (tokens,) = self._block.read(self._tokens[row % 2])
        return tokens

    def decode(self, row: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Media of the last row's codes, and the codes; after all rows they are the tokens."""
        return self._decode(self._block, self._codes)[0], self.x0()

    def preview(self) -> NDArray[Any]:
        """Media of the codes that every place had in the last row."""
        return self._decode(self._block, self._codes)[0]

    def x0(self) -> NDArray[np.int64]:
        """A copy of these codes (B, *L)."""
        (codes,) = self._block.read(self._codes)
        return codes

    def decode_x0(self) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Media of these, and they."""
        return self._decode(self._block, self._codes)[0], self.x0()

    def close(self) -> None:
        """Free the memory; nothing of this plan may be called any more."""
        self._loop, self.steps = None, []
        self.invariants.close()
        self._decode.forget()
        self._block.close()
