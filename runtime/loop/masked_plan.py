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
from mmgen.runtime.solvers.masked import MaskedTable
from mmgen.runtime.solvers.masked_reference import ended, following
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle

ROWS = {  # shapes of the step graph's inputs from a row of the table, float32
    names.SHARPNESS: (1,),
    names.TOP_K: (1,),
    names.CONFIDENCE: (2,),
    names.MASKED: (1,),
    names.STAY: (1,),
    names.WINDOW: (1,),
    names.REDRAW: (1,),
    names.THRESHOLD: (1,),
}


class MaskedPlan:
    """Made for one ``Size``; owns its block.  All branches run in every evaluation."""

    def __init__(self, bundle: Bundle, backend: Backend, runners: Runners, size: Size) -> None:
        assert isinstance(bundle.process, Masked)
        self._backend, self._process = backend, bundle.process
        self._table: MaskedTable  # of the request that was written
        self._end = bundle.media.end_id
        shape, count = (size.batch, *bundle.latent_shape), len(size.stochastic)
        layout = Layout()
        self._tokens = layout.slots(2, shape, "int64")
        step = {spec.name: spec for spec in bundle.graphs["step"].inputs}
        shapes = {**ROWS, names.TIMESTEP: (1,)}
        self._rows = {name: layout.slots(count, of_row) for name, of_row in shapes.items() if name in step}
        self._uniforms = {name: [layout.slot(shape) for _ in range(count)] for name in (names.CHOICE, names.ORDER)}
        self._guidance = layout.slot((size.guides,))
        axes = {"B": size.batch, "G": size.guides, "R": size.guides * size.batch, "N": count}
        self.invariants = Invariants(bundle, layout, axes)
        self._codes = layout.slot(shape, "int64")
        self._decode = Decoding(bundle, runners.get("decode"), layout, size.batch)

        self._block = backend.block(self.invariants.host_bytes, layout.bytes - self.invariants.host_bytes)
        try:

            def slots_of(i: int) -> dict[str, Slot]:
                """Return the slots of evaluation ``i``."""
                return {
                    **self.invariants.of_row(i, step),
                    **{name: slots[i] for name, slots in (self._rows | self._uniforms).items()},
                    names.GUIDANCE: self._guidance,
                    names.TOKENS: self._tokens[i % 2],
                    names.NEXT_TOKENS: self._tokens[(i + 1) % 2],
                    names.CODES: self._codes,
                }

            self.steps = runners["step"].bind(self._block, [slots_of(i) for i in range(count)])
            self.invariants.bind(self._block, runners)
            self._decode.bind(self._block, self._codes)
        except BaseException:
            self._block.close()
            raise
        self._loop: Call | None = None
        self._recorded = False

    def write(self, prepared: Prepared) -> None:
        """Write a request of this size for the device.  Codes to start from are kept where no mask is."""
        host, table = self._block.host, prepared.table
        self._table = table
        self._tokens[0].of(host)[:] = first_state(prepared).state
        for name, slots in self._rows.items():
            stacked(host, slots)[:] = getattr(table, name).reshape(len(slots), *slots[0].shape)
        for i, uniforms in noises(prepared).items():
            self._uniforms[names.CHOICE][i].of(host)[:] = uniforms[:, 0]
            self._uniforms[names.ORDER][i].of(host)[:] = uniforms[:, 1]
        self._guidance.of(host)[:] = prepared.branches.weights
        self.invariants.write(self._block, table.timestep, prepared.branches.inputs)

    def loop(self) -> Call | None:
        """Return all evaluations as one call if the backend can record them; made once, after a request was written."""
        if not self._recorded:
            self._loop, self._recorded = self._backend.record(self.steps), True
            self._block.upload()  # running it to record may have overwritten the start
        return self._loop

    def resume(self, done: int, tokens: NDArray[np.int64]) -> None:
        """Replace the tokens after ``done`` evaluations by these (B, *L), with masks.

        Raises:
            MmgenError: another shape or type, or a number that is neither a code nor a mask.
        """
        slot, last = self._tokens[done % 2], self._tokens[-1]
        slot.of(self._block.host)[:] = checked_tokens(tokens, slot.shape, self._process)
        self._block.upload(last.offset + last.bytes)

    def following(self, done: int) -> int | None:
        """Return the next evaluation that matters after ``done`` of them, from 1; None: there is none."""
        tokens = self.latents(done)
        row = following(self._process, self._table, done - 1, tokens.reshape(len(tokens), -1), self._end)
        return None if row is None else row + 1

    def skip(self, done: int, evaluation: int) -> None:
        """Have an evaluation begin from the tokens after ``done``, where those between are left out."""
        if (evaluation - 1 - done) % 2:  # it reads the other slot
            self.resume(evaluation - 1, self.latents(done))

    def latents(self, done: int) -> NDArray[np.int64]:
        """Copy the tokens (B, *L) after ``done`` evaluations, with masks."""
        (tokens,) = self._block.read(self._tokens[done % 2])
        return tokens

    def decode(self, done: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode the last evaluation's codes, which are the tokens after all evaluations; return the media and them."""
        return self.decode_x0()

    def preview(self) -> NDArray[Any]:
        """Decode the codes that the last evaluation predicted at all positions to media."""
        return self._decode(self._block, self._codes)[0]

    def x0(self) -> NDArray[np.int64]:
        """Copy these codes (B, *L)."""
        (codes,) = self._block.read(self._codes)
        return codes

    def decode_x0(self) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Decode these codes, and return the media and them; a text's end where it ends."""
        media, _ = self._decode(self._block, self._codes)
        return media, ended(self.x0(), self._end)

    def close(self) -> None:
        """Free the memory; nothing of this plan may be called afterwards."""
        self._loop, self.steps = None, []
        self.invariants.close()
        self._decode.forget()
        self._block.close()
