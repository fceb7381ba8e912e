"""Media from the host, encoded: where a request begins that starts from something."""

from typing import Any

from numpy.typing import NDArray

from mmgen.runtime.backends.memory import Layout
from mmgen.runtime.backends.protocol import Backend, Runner
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.schema import Bundle


def encode(bundle: Bundle, backend: Backend, runner: Runner, media: NDArray[Any]) -> NDArray[Any]:
    """Latents float32 or codes int64 (B, *L) of media (B, ...); ``runner`` is the bundle's encode graph."""
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
