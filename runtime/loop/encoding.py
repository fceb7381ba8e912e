"""Graphs that run alone, on what the host gives: encoders, embeddings and the decoder, in memory of their own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Layout
from mmgen.runtime.backends.protocol import Backend, Runner
from mmgen.runtime.loop.plan import Decoding
from mmgen.runtime.storage.schema import Bundle, Role, shape_of


def run_alone(
    bundle: Bundle, backend: Backend, runner: Runner, role: Role, given: NDArray[Any]
) -> NDArray[Any]:
    """Run a graph of one input and one output, ``runner``, on an array (B, ...) from the host; return its result."""
    layout, graph = Layout(), bundle.graphs[role]
    (taken,), (made,) = graph.inputs, graph.outputs
    source = layout.slot(given.shape, taken.dtype)
    host_bytes = layout.bytes
    result = layout.slot(shape_of(made, {"B": len(given)}), made.dtype)
    block = backend.block(host_bytes, layout.bytes - host_bytes)
    try:
        (call,) = runner.bind(block, [{taken.name: source, made.name: result}])
        source.of(block.host)[:] = given
        block.upload()
        call()
        (array,) = block.read(result)
        return array
    finally:
        block.close()


def decode(
    bundle: Bundle, backend: Backend, runner: Runner | None, latents: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Decode latents or codes (B, *L) from the host to media (B, ...) and codes (B, ...) or None."""
    layout = Layout()
    slot = layout.slot(latents.shape, latents.dtype.name)
    host_bytes = layout.bytes
    decoding = Decoding(bundle, runner, layout, len(latents))
    block = backend.block(host_bytes, layout.bytes - host_bytes)
    try:
        decoding.bind(block, slot)
        slot.of(block.host)[:] = latents
        block.upload()
        return decoding(block, slot)
    finally:
        block.close()
