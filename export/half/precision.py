"""A float32 graph to one of mixed precision: half where half is enough, float32 where it isn't, every type explicit.

The types are in the graph, so every compiler does the same with it (TensorRT 11 has no flag for half precision any
more), and what was achieved is counted in the file that was written, not assumed from what was asked for.
"""

import dataclasses
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from mmgen.export.base.dtypes import FLOATS, half_slots, is_single, load, mixed_types
from mmgen.export.base.onnx_storage import save
from mmgen.export.base.operators import has_weights
from mmgen.export.half.islands import LARGEST, LIMIT, MASKED, Choice, Weight, choose
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import HalfShare, Island, Role

CHUNK = 1 << 22  # values examined together
MUST_BE_HALF: tuple[Role, ...] = ("step", "decode")  # at least some weights; of the others, inspect shows the share

_T = TypeVar("_T")

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_OTHER = {_FLOAT: _HALF, _HALF: _FLOAT}
_SUFFIX = {_FLOAT: "_fp32", _HALF: "_fp16"}


@dataclass(frozen=True)
class Halved:
    """What ``to_half`` did: the tensors that stay float32, and how much is half."""

    islands: tuple[Island, ...]
    share: HalfShare
    narrowed: frozenset[str] = frozenset()  # the inputs that became half


def to_half(
    source: Path,
    target: Path,
    ranges: Mapping[str, float],
    *,
    role: Role,
    islands: bool = True,
    given: Container[str] = (),
    narrow_inputs: Container[str] = (),
    narrow_outputs: Container[str] = (),
    progress: Callable[[float], None] | None = None,
) -> Halved:
    """Write a strongly typed float16 version of a float32 ONNX graph.

    Inputs and outputs keep their types unless they are named here.  Weights are stored in the type that their reader
    wants, tensor by tensor, so that no more than the largest of them is in memory; Casts stand where float32 and
    float16 meet and nowhere else.

    Args:
        source: a float32 graph, with or without external weights.
        target: what to write, with its weights beside it in ``target`` + ".data".
        ranges: max |value| of every float32 tensor, from ``measure_ranges`` on ``source``.
        role: what the graph is for; it decides what must stay float32 whatever the ranges.
        islands: False makes activations half even where their range doesn't fit, which gives infinities.
        given: inputs that a request gives and no layer has processed.
        narrow_inputs: those that become half if all their readers take half; the graph that makes them then rounds as
            this graph would.
        narrow_outputs: those that become half.
        progress: called with the share of the work that is done, 0 to 1.

    Raises:
        MmgenError: a subgraph (If, Loop), NaN among the weights, a tensor without a range, or a result that isn't a
            valid graph or has no half weights; nothing is left at ``target`` then.
    """
    report = progress or (lambda _: None)
    model = load(source)
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise MmgenError(
                f"graph {role}: node {node.name} ({node.op_type}) holds a graph of its own",
                remedy="write the model without loops and branches",
            )
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    weights = _examine(model, role, lambda share: report(share / 2))
    choice = choose(model, weights, ranges if islands else None, role, given)
    _retype(model, choice, narrow_outputs)
    narrowed = _narrow_inputs(model.graph, narrow_inputs)
    data = target.with_name(f"{target.name}.data")
    try:
        save(model, target, lambda _, info: report(0.5 + 0.5 * (info.index + 1) / info.total))
        share = half_share(target)
        _check(target, role, share)
    except BaseException:
        target.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        raise
    return Halved(choice.islands, share, narrowed)


def half_share(path: Path) -> HalfShare:
    """Count how much of an ONNX file is half precision; 0 where there is nothing to count."""
    graph = load(path).graph
    weights = [v.const_value for v in graph.initializers.values() if v.const_value is not None]
    weight_bytes = {dtype: sum(t.nbytes for t in weights if t.dtype == dtype) for dtype in FLOATS}
    types = [[v.dtype for v in node.outputs if v.dtype in FLOATS] for node in graph]
    operations = [all(dtype == _HALF for dtype in outputs) for outputs in types if outputs]
    return HalfShare(
        weight_bytes=weight_bytes[_HALF] / max(sum(weight_bytes.values()), 1),
        operations=sum(operations) / max(len(operations), 1),
    )


def _examine(model: ir.Model, role: Role, report: Callable[[float], None]) -> dict[ir.Value, Weight]:
    """Examine what float16 would do to every float32 initialiser."""
    singles = [value for value in model.graph.initializers.values() if is_single(value)]
    examined = {}
    for done, value in enumerate(singles):
        assert value.const_value is not None
        weight = _read(value.const_value, weigh)
        if weight.low < -LIMIT:
            weight = dataclasses.replace(weight, open=_read(value.const_value, _open))
        examined[value] = weight
        if np.isnan(weight.low):
            raise MmgenError(f"graph {role}: weight {value.name} holds NaN", remedy="the checkpoint is damaged")
        report((done + 1) / len(singles))
    return examined


def weigh(numbers: np.ndarray) -> Weight:
    """Measure what float16 does to float32 numbers of any shape; ``low`` is NaN if one of them is."""
    flat = numbers.reshape(-1)
    low, high, magnitude, error, power, nonzero, lost = np.inf, -np.inf, 0.0, 0.0, 0.0, 0, 0
    for start in range(0, flat.size, CHUNK):
        piece = flat[start : start + CHUNK]
        low, high = float(np.minimum(low, piece.min())), float(np.maximum(high, piece.max()))
        finite = piece[np.isfinite(piece)]
        magnitude = max(magnitude, float(np.abs(finite).max(initial=0)))
        exact = finite[np.abs(finite) <= LARGEST].astype(np.float64)
        half = _half(exact)
        error += float(np.square(exact - half).sum())
        power += float(np.square(exact).sum())
        nonzero += np.count_nonzero(exact)
        lost += np.count_nonzero(exact[half == 0])
    return Weight(low, high, magnitude, (error / power) ** 0.5 if power else 0.0, lost / max(nonzero, 1))


def _open(numbers: np.ndarray) -> bool:
    """Return whether a mask leaves something unmasked, in every row if it has rows."""
    return numbers.ndim > 0 and numbers.shape[-1] > 1 and bool((numbers > -LIMIT).any(-1).all())


def _read(tensor: ir.TensorProtocol, use: Callable[[np.ndarray], _T]) -> _T:
    """Apply ``use`` to a weight's values, which are in memory no longer than that."""
    result = use(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
    return result


def _retype(model: ir.Model, choice: Choice, narrow: Container[str]) -> None:
    """Make the chosen nodes half, and cast or store each tensor in the type that its readers want."""
    graph = model.graph
    opset = model.opset_imports.get("", 0)
    slots = {node: half_slots(node, opset) for node in graph}
    precision: dict[ir.Node, ir.DataType] = {}
    for node in graph:  # in order: what only reads numbers (a comparison, an ArgMax) takes them as they come
        inputs, outputs = slots[node]
        computed = [v for i in inputs if (v := node.inputs[i]) is not None and v.const_value is None]
        half = node not in choice.single and (bool(outputs) or all(v.dtype == _HALF for v in computed))
        precision[node] = _HALF if half and (inputs or outputs) else _FLOAT
        if half:
            for i in outputs:
                node.outputs[i].dtype = _HALF
            _retype_attributes(node)

    others: dict[ir.Value, ir.Value] = {}  # the same numbers in the other type
    for node in list(graph):
        inputs, _ = slots[node]
        for i, value in enumerate(node.inputs):
            wanted = precision[node] if i in inputs else _FLOAT
            if value is None or value.dtype not in _OTHER or value.dtype == wanted:
                continue
            if value not in others and value.const_value is not None:
                others[value] = _stored(graph, value, mask=value in choice.masks)
            elif value not in others:
                cast = _cast(value)
                graph.insert_before(node, cast)
                others[value] = cast.outputs[0]
            node.replace_input_with(i, others[value])
    _retype_outputs(graph, others, narrow)
    _replace_weights(graph, others)


def _retype_attributes(node: ir.Node) -> None:
    """Change the types that are attributes, where the slots said that the output changes."""
    if "to" in node.attributes and node.outputs[0].dtype == _HALF:
        node.attributes["to"] = ir.AttrInt64("to", _HALF)
    elif node.op_type in ("EyeLike", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"):
        node.attributes["dtype"] = ir.AttrInt64("dtype", _HALF)
    elif node.op_type == "ConstantOfShape" and node.outputs[0].dtype == _HALF:
        fill = node.attributes.get_tensor("value")
        number = np.zeros(1) if fill is None else fill.numpy()
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number.astype(np.float16)))


def _cast(value: ir.Value) -> ir.Node:
    """Make a Cast to the other of the two types; from integers straight to it, not through the first."""
    assert value.dtype is not None
    dtype = _OTHER[value.dtype]
    origin, producer = value, value.producer()
    if producer is not None and producer.op_type == "Cast" and (v := producer.inputs[0]) and v.dtype not in FLOATS:
        origin = v
    name = f"{value.name}{_SUFFIX[dtype]}"
    cast = ir.node("Cast", [origin], {"to": dtype}, name=f"Cast_{name}")
    cast.outputs[0].name, cast.outputs[0].dtype, cast.outputs[0].shape = name, dtype, value.shape
    if producer is not None:
        cast.metadata_props.update(producer.metadata_props)
    return cast


def _stored(graph: ir.Graph, value: ir.Value, *, mask: bool) -> ir.Value:
    """Add a weight in float16, converted when it is written."""
    tensor = value.const_value
    assert tensor is not None and value.shape is not None

    def convert(numbers: np.ndarray) -> ir.TensorProtocol:
        if mask:  # infinities stay: they are the same in either type
            numbers = np.where(np.isfinite(numbers), np.maximum(numbers, MASKED), numbers)
        return ir.tensor(_half(numbers))

    name = f"{value.name}{_SUFFIX[_HALF]}"
    lazy = ir.LazyTensor(lambda: _read(tensor, convert), _HALF, value.shape, name=name)
    stored = ir.Value(name=name, type=ir.TensorType(_HALF), shape=value.shape, const_value=lazy)
    graph.register_initializer(stored)
    return stored


def _half(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(np.float16)


def _retype_outputs(graph: ir.Graph, others: dict[ir.Value, ir.Value], narrow: Container[str]) -> None:
    """Keep outputs of the graph float32, or make them half, under their names."""
    for i, value in enumerate(graph.outputs):
        if value.dtype not in _OTHER or value.dtype == (_HALF if value.name in narrow else _FLOAT):
            continue
        if value not in others:
            cast = _cast(value)
            graph.append(cast)
            others[value] = cast.outputs[0]
        value.name, others[value].name = f"{value.name}{_SUFFIX[value.dtype]}", value.name
        graph.outputs[i] = others[value]


def _narrow_inputs(graph: ir.Graph, narrow: Container[str]) -> frozenset[str]:
    """Make half the inputs that are read as half only, and drop the casts behind them."""
    narrowed = set()
    for value in graph.inputs:
        readers = value.consumers()
        casts = all(node.op_type == "Cast" and node.outputs[0].dtype == _HALF for node in readers)
        if value.name in narrow and readers and casts:
            value.dtype = _HALF
            for cast in readers:
                ir.convenience.replace_all_uses_with(cast.outputs[0], value)
            graph.remove(readers, safe=True)
            narrowed.add(value.name or "")
    return frozenset(narrowed)


def _replace_weights(graph: ir.Graph, others: dict[ir.Value, ir.Value]) -> None:
    """Drop weights that nothing reads any more, and give their names to what is read instead."""
    for value in list(graph.initializers.values()):
        if value.uses() or value.is_graph_output():
            continue
        name = value.name or ""
        del graph.initializers[name]
        if value in others:
            del graph.initializers[others[value].name or ""]
            others[value].name = name
            graph.register_initializer(others[value])


def _check(path: Path, role: Role, share: HalfShare) -> None:
    """Check that a written graph is valid, mixes no types, and has half weights if it has weights at all."""
    model = load(path)
    if mixed := mixed_types(model):
        node, what = mixed[0]
        raise MmgenError(f"graph {role}: node {node.name} ({node.op_type}) mixes types in half precision", got=what)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise MmgenError(
            f"graph {role} is not valid ONNX in half precision", got=str(error).partition("\n")[0]
        ) from error
    products = [node for node in model.graph if has_weights(node)]
    if products and share.weight_bytes == 0 and role in MUST_BE_HALF:
        raise MmgenError(
            f"graph {role}: no weight became half precision",
            got=f"{len(products)} operations with float32 weights",
            remedy="export with --fp32; the list of islands says why",
        )
