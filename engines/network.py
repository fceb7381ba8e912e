"""An ONNX graph as TensorRT's strongly typed network: parsed, compared with the bundle, and counted."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmgen.runtime.backends.tensorrt.library import TITLES, version
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Flavour
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.schema import Role, TensorSpec

DTYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "BOOL": "bool"}  # the others but for their case
WEIGHTS = {  # by type of layer: its class, and where its weights are
    "CONSTANT": ("IConstantLayer", ("weights",)),
    "CONVOLUTION": ("IConvolutionLayer", ("kernel", "bias")),
    "DECONVOLUTION": ("IDeconvolutionLayer", ("kernel", "bias")),
    "SCALE": ("IScaleLayer", ("shift", "scale", "power")),
}
ERRORS = 3  # how many of the parser's errors are reported


@dataclass(frozen=True)
class Parsed:
    """A network with its builder and parser, which owns the memory of the weights."""

    builder: Any  # IBuilder
    network: Any  # INetworkDefinition
    parser: Any  # OnnxParser


@dataclass(frozen=True)
class Counts:
    """Layers and weights of a network, before the compiler fuses anything."""

    layers: int
    half_layers: int  # with a half output
    float_layers: int  # with a float32 output
    half_weight_bytes: int
    float_weight_bytes: int
    islands: tuple[str, ...]  # those that were asked for and are float32


def title(flavour: Flavour, library: ModuleType) -> str:
    """Return the library's name for people, with its version."""
    return f"{TITLES[flavour]} {version(library)}"


def parse(library: ModuleType, logger: Any, flavour: Flavour, role: Role, file: Path) -> Parsed:
    """Parse an ONNX file and its external data.

    Args:
        library: ``tensorrt`` or ``tensorrt_rtx``.
        logger: the process's only one; it must outlive what is returned.
        flavour: of the library.
        role: what errors call the graph.
        file: the ONNX file.

    Raises:
        MmgenError: the parser refuses it; names the operators and the nodes.
    """
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    with as_text(file) as readable:
        taken = parser.parse_from_file(str(readable))
    if not taken:
        errors = [_phrase(parser.get_error(i)) for i in range(parser.num_errors)] or logger.errors[-1:] or ["no reason"]
        more = f" and {len(errors) - ERRORS} more" if len(errors) > ERRORS else ""
        raise MmgenError(
            f"graph {role}: {title(flavour, library)} can't read {file.name}",
            got="; ".join(errors[:ERRORS]) + more,
            remedy="export the bundle again with this mmgen, which checks operators, or use a newer TensorRT",
        )
    return Parsed(builder, network, parser)


def check_tensors(network: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], role: Role) -> None:
    """Compare a network's inputs and outputs with the bundle's.

    A named axis must be dynamic.  An output's axis may be dynamic where the bundle has a number: not every parser
    infers it, and the shape is known at run time.

    Raises:
        MmgenError: another name, type or shape.
    """
    ins = {t.name: t for t in map(network.get_input, range(network.num_inputs))}
    outs = {t.name: t for t in map(network.get_output, range(network.num_outputs))}
    for kind, specs, tensors in (("inputs", inputs, ins), ("outputs", outputs, outs)):
        wanted_names = {spec.name for spec in specs}
        if wanted_names != set(tensors):
            raise _differs(f"graph {role}: {kind}", ", ".join(sorted(tensors)), ", ".join(sorted(wanted_names)))
        for spec in specs:
            tensor = tensors[spec.name]
            shape, dtype = tuple(tensor.shape), _numpy_name(tensor.dtype)
            fits = len(shape) == len(spec.shape) and all(
                got == (-1 if isinstance(wanted, str) else wanted) or (got == -1 and kind == "outputs")
                for got, wanted in zip(shape, spec.shape, strict=True)
            )
            if dtype != spec.dtype or not fits:
                wanted_shape = ", ".join(map(str, spec.shape))
                raise _differs(f"graph {role}: {spec.name}", f"{dtype} {shape}", f"{spec.dtype} ({wanted_shape})")


def count(library: ModuleType, network: Any, islands: Sequence[str]) -> Counts:
    """Count layers by the type of their outputs, and the bytes of their weights.

    Args:
        library: the network's.
        network: an INetworkDefinition.
        islands: tensors that the bundle keeps in float32.
    """
    layers, weights = Counter[str](), Counter[str]()
    names: dict[str, str] = {}  # numpy's dtype by name of a tensor, or of a layer that holds a weight of that name
    for layer in map(network.get_layer, range(network.num_layers)):
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        dtypes = {tensor.name: _numpy_name(tensor.dtype) for tensor in outputs}
        layers.update(set(dtypes.values()))
        if outputs:
            first = _numpy_name(outputs[0].dtype)  # strongly typed: the weights' too
            names[layer.name] = first
            weights[first] += _weight_bytes(library, layer)
        names.update(dtypes)
    return Counts(
        layers=network.num_layers,
        half_layers=layers["float16"],
        float_layers=layers["float32"],
        half_weight_bytes=weights["float16"],
        float_weight_bytes=weights["float32"],
        islands=tuple(name for name in islands if any(names.get(n) == "float32" for n in _without_scopes(name))),
    )


def require_half(counts: Counts, role: Role, operations: float) -> None:
    """Refuse a network without half layers where the bundle's graph has half operations.

    Args:
        counts: of the network.
        role: what errors call the graph.
        operations: share of the graph's operations that are half, by the bundle.

    Raises:
        MmgenError: it would be a float32 engine that calls itself fp16.
    """
    if operations > 0 and not counts.half_layers:
        raise MmgenError(
            f"graph {role}: half layers in TensorRT's network",
            got=f"none of {counts.layers}",
            wanted=f"about {operations:.0%}, as in the fp16 bundle",
            remedy="export the bundle again; this graph is float32",
        )


def _phrase(error: Any) -> str:
    """Format a parser error as one phrase."""
    reason = textwrap.shorten(error.desc(), 300, placeholder=" ...")
    operator = error.node_operator()
    return f"operator {operator} (node {error.node_name() or error.node()}): {reason}" if operator else reason


def _differs(what: str, got: str, wanted: str) -> MmgenError:
    return MmgenError(what, got=got, wanted=wanted, remedy="the bundle and its ONNX files disagree; export it again")


def _numpy_name(dtype: Any) -> str:
    name = str(dtype.name)
    return DTYPES.get(name, name.lower())


def _weight_bytes(library: ModuleType, layer: Any) -> int:
    if layer.type.name not in WEIGHTS:
        return 0
    kind, attributes = WEIGHTS[layer.type.name]
    layer.__class__ = getattr(library, kind)  # TensorRT's own way to get at what a kind of layer has
    return sum(int(getattr(layer, attribute).nbytes) for attribute in attributes)


def _without_scopes(name: str) -> Iterator[str]:
    """Yield ``a/b/c``, ``b/c``, ``c``: the bundle may put the submodule before a tensor's name."""
    yield name
    while "/" in name:
        name = name.partition("/")[2]
        yield name
