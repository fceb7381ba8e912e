"""Media from the host, encoded, and latents from the host, decoded: each in a block of memory of its own."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Layout
from mmgen.runtime.backends.protocol import Backend, Runner
from mmgen.runtime.loop.plan import Decoding
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.schema import Bundle


def encode(bundle: Bundle, backend: Backend, runner: Runner, media: NDArray[Any]) -> NDArray[Any]:
    """Encode media (B, ...) to latents float32 or codes int64 (B, *L); ``runner`` is the bundle's encode graph."""
    layout = Layout()
    given = layout.slot(media.shape, media.dtype.name)
    host_bytes = layout.bytes
    (spec,) = bundle.graphs["encode"].outputs
    made = layout.slot((len(media), *bundle.latent_shape), spec.dtype)
    block = backend.block(host_bytes, layout.bytes - host_bytes)
    try:
        (call,) = runner.bind(block, [{names.MEDIA: given, spec.name: made}])
        given.of(block.host)[:] = media
        block.upload()
        call()
        (encoded,) = block.read(made)
        return encoded
    finally:
        block.close()


def decode(
    bundle: Bundle, backend: Backend, runner: Runner, latents: NDArray[Any]
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
