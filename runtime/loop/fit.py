"""Estimates of whether a request fits into memory, before any of it is laid out.

What is passed between graphs is known to the byte.  What a graph allocates inside is not: it is estimated from its
inputs, outputs and operations, as measured with ONNX Runtime (0.20 to 0.32 MB for each sample of a tiny model of 64
tokens, where the estimate is 0.4; 8.9 to 13.8 MB of the embedded one, where it is 6), and may be off by a factor of
three.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import numpy as np

from mmgen.runtime.backends.registry import ON_GPU
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.free_memory import free_bytes
from mmgen.runtime.request.prepare import Size
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Bundle, Graph, Role, TensorSpec, shape_of
from mmgen.runtime.storage.tensors import TENSORS

INSIDE = 24  # times the inputs and outputs of the step or the decoder
WIDENED = 4  # times the conditioning that a step takes
OPERATIONS = 1500  # operations for each byte inside
COPIES = 6  # of the latents: noise, the start and its two parts that are kept, results
ALWAYS = 1 << 26  # bytes that are assumed to be free: what takes less isn't checked


def check_for(bundle: Bundle, backend: str) -> Callable[[Size], None]:
    """Return a function that checks that there is memory for a request of a size; a GPU's own memory isn't checked.

    It raises an ``MmgenError`` where there isn't, which says how many samples would fit.
    """
    needed = functools.lru_cache(partial(bytes_of, bundle, on_host=backend not in ON_GPU))
    return lambda size: _check(size.batch, needed(size))


def check_decoding(bundle: Bundle, backend: str, batch: int) -> None:
    """Check that there is memory to decode so many samples.

    Raises:
        MmgenError: there isn't; it says how many would fit.
    """
    if (graph := bundle.graphs.get("decode")) is None:  # the caller has them already
        return
    axes = {"B": batch}
    made = _handed(graph.outputs, axes)
    _check(batch, made if backend in ON_GPU else 2 * made + _inside([graph], axes))


def bytes_of(bundle: Bundle, size: Size, *, on_host: bool) -> int:
    """Estimate a request's bytes in the host's memory: its arguments and results, and with ``on_host`` all between."""
    count = len(size.stochastic)
    axes = {"B": size.batch, "G": size.guides, "R": size.guides * size.batch, "N": count}
    latents = 4 * size.batch * math.prod(bundle.latent_shape)
    noisy = 2 * count if isinstance(bundle.process, Masked) else sum(size.stochastic)
    given = bundle.graphs.get("condition", bundle.graphs["step"]).inputs
    media = _handed(bundle.graphs["decode"].outputs, axes) if "decode" in bundle.graphs else 2 * latents
    host = (COPIES + noisy) * latents + 2 * _handed(given, axes) + media
    if not on_host:
        return host
    roles: tuple[Role, ...] = ("condition", "timestep", "step", "decode")
    graphs = [bundle.graphs[role] for role in roles if role in bundle.graphs]
    between = {spec.name: spec for graph in reversed(graphs) for spec in (*graph.inputs, *graph.outputs)}
    return host + noisy * latents + _handed(between.values(), axes) + _inside(graphs, axes)


def _check(batch: int, needed: int) -> None:
    if needed <= ALWAYS or (free := free_bytes()) is None or needed <= free:
        return
    fitting = batch * free // needed
    remedy = f"ask for at most {fitting} samples at once" if fitting else "ask for fewer steps, or free memory"
    raise MmgenError(
        "the request is larger than the memory", got=f"{_size(free)} that are free",
        wanted=f"about {_size(needed)} for {'one sample' if batch == 1 else f'{batch} samples'}", remedy=remedy,
    )  # fmt: skip


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB" if count < 1e10 else f"{count / 1e9:.0f} GB"


def _handed(specs: Iterable[TensorSpec], axes: Mapping[str, int]) -> int:
    return sum(math.prod(shape_of(spec, axes)) * np.dtype(spec.dtype).itemsize for spec in specs)


def _inside(graphs: Iterable[Graph], axes: Mapping[str, int]) -> int:
    """Estimate what the largest of these graphs allocates for itself."""
    return max(_inside_of(graph, axes) for graph in graphs)


def _inside_of(graph: Graph, axes: Mapping[str, int]) -> int:
    branched = [spec for spec in (*graph.inputs, *graph.outputs) if "B" in spec.shape]
    own = _handed((spec for spec in branched if spec.name in TENSORS), axes)
    hoisted = _handed((spec for spec in branched if spec.name not in TENSORS), axes)
    operations = 0
    for over, count in (graph.operations or {}).items():
        operations += count * math.prod(axes.get(axis, 1) for axis in over.split())
    return INSIDE * own + WIDENED * hoisted + operations // OPERATIONS
