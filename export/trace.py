"""A torch module to an ONNX file: opset 18, named axes, weights beside the graph."""

import contextlib
import inspect
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass
from onnxscript import opset18

from mmgen.export.cut import operations_by_axes, weight_bytes
from mmgen.export.graphs import Source
from mmgen.export.upsampling import fold
from mmgen.runtime.bundle import Graph, TensorSpec, sha256
from mmgen.runtime.errors import MmgenError

OPSET = 18  # TensorRT 10.3 parses all of it, and torch writes it without converting
EXTERNAL_BYTES = 1024  # smaller tensors, shapes among them, stay in the graph, where optimisers look for constants
SCOPES = "pkg.torch.onnx.name_scopes"  # metadata of a node: the list of submodules it is in
METADATA = ("namespace", SCOPES)  # what is kept; the rest holds source code and file names of this machine
op: Any = opset18  # its annotations leave out the plain numbers that it takes
MASKED = -3e4  # added to the scores that attention must not see; finite in half precision, and exp of it is 0


def trace(source: Source, path: Path) -> None:
    """Write a graph to ``path`` and its weights to ``path`` + ".data".

    Axes that ``source`` names keep their names and may be 1 or more; all others are as in the examples.

    Raises:
        MmgenError: torch can't trace the module, wrote another opset, or fixed an axis that must vary.
    """
    axes = [{i: axis for i, axis in enumerate(source.axes.get(name, ())) if axis} for name in source.inputs]
    try:
        with _quiet(), _no_fast_path(), torch.no_grad():
            program = torch.onnx.export(
                source.module.eval(),
                tuple(source.inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(source.inputs),
                output_names=list(source.outputs),
                dynamic_shapes=dict(inspect.signature(source.module.forward).bind(*axes).arguments),
                custom_translation_table={
                    torch.ops.aten.scaled_dot_product_attention.default: attention,
                    torch.ops.aten.gelu.default: gelu,
                },
                verbose=False,
            )
    except Exception as error:
        raise MmgenError(
            f"graph {source.role} can't be traced by torch.export: {_reason(error)}",
            remedy="change the module's forward so that torch.export takes it with a varying batch",
        ) from error
    assert program is not None  # None is what the exporter before dynamo returned
    model = program.model
    fold(model.graph)
    _tidy(model, source)
    _check(model, source)
    ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=EXTERNAL_BYTES)


def describe(path: Path, folder: Path) -> Graph:
    """The manifest's record of an ONNX file below a bundle's folder: hashes, inputs, outputs and work of the file."""
    graph = ir.load(path).graph
    data = path.with_name(f"{path.name}.data")
    return Graph(
        file=path.relative_to(folder).as_posix(),
        sha256=sha256(path),
        inputs=tuple(_spec(value) for value in graph.inputs),
        outputs=tuple(_spec(value) for value in graph.outputs),
        data=data.relative_to(folder).as_posix() if data.exists() else None,
        data_sha256=sha256(data) if data.exists() else None,
        operations=operations_by_axes(graph),
        weight_bytes=weight_bytes(graph),
    )


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``aten::scaled_dot_product_attention`` in ONNX: softmax(q k^T scale + mask) v, operands (..., H, N, D).

    torch's own translation transposes the key with nine nodes of shape arithmetic and masks with a number that half
    precision doesn't have.  A row that a boolean mask hides whole attends to everything here; in torch it is zero.
    """
    rank, (queries, width), keys = len(query.shape), query.shape[-2:], key.shape[-2]
    if enable_gqa and (groups := query.shape[-3] // key.shape[-3]) > 1:  # each key head serves ``groups`` query heads
        key, value = (_repeat_heads(x, groups) for x in (key, value))
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    factor = 1 / math.sqrt(width) if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.CastLike(factor, query)), transposed)
    if is_causal:
        bias = np.where(np.tri(queries, keys, dtype=bool), 0, MASKED).astype(np.float32)
        scores = op.Add(scores, op.CastLike(op.Constant(value=ir.tensor(bias)), scores))
    elif attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        scores = op.Add(scores, op.CastLike(op.Where(attn_mask, 0.0, MASKED), scores))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def gelu(x: Any, approximate: str = "none") -> Any:
    """``aten::gelu`` in ONNX: x/2 (1 + erf(x / sqrt 2)), or x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Torch's own translation halves the other factor, and ONNX Runtime doesn't know that as a GELU, of which it makes one
    operator.
    """
    if approximate == "tanh":
        cubed = op.Mul(op.Pow(x, op.CastLike(3.0, x)), op.CastLike(0.044715, x))
        inner = op.Tanh(op.Mul(op.Add(x, cubed), op.CastLike(math.sqrt(2 / math.pi), x)))
    else:
        inner = op.Erf(op.Div(x, op.CastLike(math.sqrt(2), x)))
    return op.Mul(op.Mul(x, op.CastLike(0.5, x)), op.Add(inner, op.CastLike(1.0, x)))


def _repeat_heads(x: Any, groups: int) -> Any:  # (R, H, N, D) -> (R, H groups, N, D)
    heads, width = x.shape[-3], x.shape[-1]
    repeated = op.Concat(*[op.Unsqueeze(x, [2])] * groups, axis=2)
    return op.Reshape(repeated, op.Constant(value_ints=[0, heads * groups, -1, width]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what torch's exporter prints, logs and warns of away from the user."""
    disabled = logging.root.manager.disable
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """``nn.TransformerEncoderLayer`` in evaluation mode calls one fused operator that ONNX doesn't have."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _reason(error: BaseException) -> str:
    """The first line of the exception that torch wrapped in others."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _tidy(model: ir.Model, source: Source) -> None:
    """Name the graph; keep of the metadata what says which submodule a node is in, and give it to every node.

    Torch doesn't look whether an input that was named has the name of something inside, which gets another one here.
    """
    NameFixPass()(model)
    model.graph.name = source.role
    model.producer_version = torch.__version__
    for node in model.graph:
        kept = {key: node.metadata_props[key] for key in METADATA if key in node.metadata_props}
        origin = next((p for value in node.inputs if value is not None and (p := value.producer()) is not None), None)
        if SCOPES not in kept and origin is not None:  # the optimiser made this node; nodes come in order of use
            kept |= origin.metadata_props
        node.metadata_props.clear()
        node.metadata_props.update(kept)
    for value in (*model.graph.initializers.values(), *(out for node in model.graph for out in node.outputs)):
        value.metadata_props.clear()


def _check(model: ir.Model, source: Source) -> None:
    if model.opset_imports != {"": OPSET}:
        raise MmgenError(
            f"graph {source.role}: operator sets",
            got=dict(model.opset_imports),
            wanted={"": OPSET},
            remedy="use torch 2.9 or later",
        )
    for value in model.graph.inputs:
        example = source.inputs[value.name or ""]
        names = source.axes.get(value.name or "", ())
        wanted = tuple(names[i] if i < len(names) and names[i] else size for i, size in enumerate(example.shape))
        if (got := _spec(value).shape) != wanted:
            raise MmgenError(f"graph {source.role}: input {value.name}", got=got, wanted=wanted)
    known = {axis for axes in source.axes.values() for axis in axes}
    for value in model.graph.outputs:
        if unknown := [axis for axis in _spec(value).shape if isinstance(axis, str) and axis not in known]:
            raise MmgenError(
                f"graph {source.role}: output {value.name} has an axis of unknown size",
                got=unknown[0],
                wanted="fixed sizes behind the batch",
                remedy="make the module's output as large for every input",
            )


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    shape = tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)
    return TensorSpec(value.name, str(value.dtype.numpy()), shape)
