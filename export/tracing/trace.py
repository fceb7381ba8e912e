"""A torch module to an ONNX file: opset 18, named axes, weights beside the graph."""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from mmgen.export.base.onnx_storage import save
from mmgen.export.base.origins import ORIGIN, SCOPES, note
from mmgen.export.graph_files.splice import add_files, translations
from mmgen.export.graphs.latent import Source
from mmgen.export.tracing.capture import capture, untraceable
from mmgen.export.tracing.counts import operations_by_axes, weight_bytes
from mmgen.export.tracing.registry import registry_kept
from mmgen.export.tracing.simplify import simplify
from mmgen.export.tracing.translations import table
from mmgen.export.tracing.upsampling import fold
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import Graph, TensorSpec

OPSET = 18  # TensorRT 10.3 parses all of it, and torch writes it without converting
METADATA = ("namespace", SCOPES, ORIGIN)  # what is kept; the rest holds source code


def trace(source: Source, path: Path) -> ExportedProgram:
    """Write a graph to ``path`` and its weights to ``path`` + ".data".

    Axes that ``source`` names keep their names and may be 1 or more; all others are as in the examples.

    Returns:
        The program of torch's operators that was translated; its tensors have the same names in both.

    Raises:
        MmgenError: torch can't trace the module, wrote another opset, or fixed an axis that must vary.
    """
    with _collecting_little():
        return _trace(source, path)


def _trace(source: Source, path: Path) -> ExportedProgram:
    with _quiet():
        program = capture(source)
    axes = [{i: axis for i, axis in enumerate(source.axes.get(name, ())) if axis} for name in source.inputs]
    try:
        with _quiet(), registry_kept(), torch.no_grad():
            converted = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=tuple(axes),
                custom_translation_table={**table(), **translations()},
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        raise untraceable(source, error, program) from error
    assert converted is not None  # None is what the exporter before dynamo returned
    model = converted.model
    add_files(model)
    simplify(model)
    _name(model.graph, source)
    fold(model.graph)
    _tidy(model, source)
    _check(model, source)
    save(model, path)
    assert converted.exported_program is not None
    return converted.exported_program


def describe(path: Path, folder: Path) -> Graph:
    """Build the manifest's record of an ONNX file in a bundle's folder: hashes, inputs, outputs and work."""
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


@contextlib.contextmanager
def _collecting_little() -> Iterator[None]:
    """Spare Python's collector the many objects that torch is, which took a tenth of the time to search."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporter prints, logs and warns of away from the user."""
    disabled = logging.root.manager.disable
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def _name(graph: ir.Graph, source: Source) -> None:
    """Give inputs and outputs the names in the source, and nothing else those names."""
    ends = [*zip(graph.inputs, source.inputs, strict=True), *zip(graph.outputs, source.outputs, strict=True)]
    values = {v.name: v for v in (*graph.initializers.values(), *(out for node in graph for out in node.outputs))}
    for value, name in ends:
        if name in values and values[name] is not value:
            values[name].name = f"{name}_inside"
        value.name = name


def _tidy(model: ir.Model, source: Source) -> None:
    """Name the graph; of the metadata keep which submodule a node is in, and give it to every node."""
    model.graph.name = source.role
    model.producer_version = torch.__version__
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    note(model)
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
