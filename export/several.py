"""A model with several outputs to one bundle: each is exported and validated alone, then their files are combined."""

import dataclasses
import hashlib
import re
import shutil
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import onnx_ir as ir

from mmgen.export.base.leftovers import nothing_left
from mmgen.export.base.model import Model, modules
from mmgen.export.base.naming import inputs_named
from mmgen.export.base.onnx_storage import leaves
from mmgen.export.base.place import placed
from mmgen.export.base.weights import check_loaded
from mmgen.export.check import PLAIN, check, weight_bytes
from mmgen.export.processes import Jobs, in_processes
from mmgen.runtime.base.choices import did_you_mean
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.progress import Report, parts
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.bundle import read_bundle, write_manifest
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.manifest import manifest_of
from mmgen.runtime.storage.schema import EMBED, INPUT, MANIFEST, TOKENIZER, Bundle, Condition, Graph


class ExportOne(Protocol):
    """Exports a model with one output to a folder."""

    def __call__(self, model: Model, out: Path, *, progress: Report) -> Bundle: ...


PARTS, GRAPHS, GOLDENS, NULLS = "outputs", "graphs", "golden", "nulls"  # folders; the first is gone in the end
WEIGHTS = f"{GRAPHS}/weights.data"  # of all graphs
PAGE, ALIGNED = 4096, 64  # bytes that a weight's place in it is a multiple of: a large one's, so that it can be mapped
DISK = 3.5  # bytes to have free for each byte of weights


def export_outputs(model: Model, out: Path, export_one: ExportOne, progress: Report, jobs: Jobs | None) -> Bundle:
    """Export every output of a model, and write one bundle.

    Args:
        export_one: exports a model with one output; with ``jobs``, can be pickled.
        jobs: how to export several at once; None: one after the other.

    Raises:
        MmgenError: as of ``export_one``, or the outputs don't fit together.
    """
    for part, module in modules(model).items():
        check_loaded(module, f"{part} of {model.name}")
    _check(model)
    for name in model.outputs:  # all of them before the long work
        check(alone(model, name))
    with (
        nothing_left(),
        placed(Path(out), round(DISK * weight_bytes(model))) as made,
        as_text(made / MANIFEST) as manifest,
    ):
        folder = manifest.parent
        (folder / PARTS).mkdir()
        export_output = partial(_export_output, export_one)

        def report(stage: str, done: float) -> None:
            progress(stage, 0.95 * done)

        if jobs and jobs.count > 1:
            bundles = in_processes(jobs, [*model.outputs], export_output, folder / PARTS, report)
        else:
            bundles = {
                name: export_output(model, name, folder / PARTS / name, part)
                for name, part in parts([*model.outputs], report)
            }
        progress("combining the outputs", 0.95)
        combined = _combined(bundles, folder)
        shutil.rmtree(folder / PARTS)
        write_manifest(manifest_of(combined, next(iter(combined))), folder)
        written = read_bundle(folder)
        progress("done", 1.0)
    return dataclasses.replace(written, folder=Path(out))


def _export_output(export_one: ExportOne, model: Model, name: str, out: Path, progress: Report) -> Bundle:
    return export_one(alone(model, name), out, progress=progress)


def alone(model: Model, name: str) -> Model:
    """Return the model with one of its outputs only; an embedding stays with the first that takes its input."""
    output = model.outputs[name]
    inputs = {condition.name: condition for condition in inputs_named(model)}
    taken = _taken(model, name)
    homes = {embedded: next(o for o in model.outputs if embedded in _taken(model, o)) for embedded in model.embeds}
    own = {field.name: getattr(output, field.name) for field in dataclasses.fields(output) if field.name != "inputs"}
    return dataclasses.replace(
        model, **own, outputs={}, inputs=(), conditions=tuple(inputs[each] for each in taken),
        encoders={each: module for each, module in model.encoders.items() if each in taken},
        embeds={each: module for each, module in model.embeds.items() if homes[each] == name},
        examples=tuple(kept for e in model.examples if (kept := {k: v for k, v in e.items() if k in taken})),
        **_tokenizers(model, (*(inputs[each] for each in taken),), name),
    )  # fmt: skip


def _check(model: Model) -> None:
    names = [condition.name for condition in model.inputs]
    for name, output in model.outputs.items():
        if not re.fullmatch(PLAIN, name):
            wanted = "letters, digits, _ and -: it is part of files' names"
            raise MmgenError("outputs: name", got=shown(name), wanted=wanted)
        for taken in output.inputs or ():
            if taken not in names:
                wanted, remedy = " or ".join(map(repr, names)) or "no input", did_you_mean(taken, names)
                raise MmgenError(f"output {name!r}: inputs", got=shown(taken), wanted=wanted, remedy=remedy)
    for field, named in (("encoders", model.encoders), ("embeds", model.embeds)):
        for name in named:
            if not any(name in _taken(model, output) for output in model.outputs):
                what = f"{field}: {shown(name)} is no input of any output"
                raise MmgenError(what, wanted=" or ".join(map(repr, names)), remedy=did_you_mean(name, names))
    if model.process is not None or model.conditions:
        remedy = "put them into outputs and inputs"
        raise MmgenError(f"model {model.name} has outputs, and also a process or conditions of its own", remedy=remedy)


def _taken(model: Model, name: str) -> tuple[str, ...]:
    """Return the names of the inputs that an output takes."""
    inputs = model.outputs[name].inputs
    return tuple(condition.name for condition in model.inputs) if inputs is None else inputs


def _tokenizers(model: Model, inputs: tuple[Condition, ...], name: str) -> dict[str, Any]:
    """Return the tokenizers that an output needs, as fields of a ``Model``."""
    files = {condition.tokenizer for condition in inputs if condition.kind == "text"}
    if (media := model.outputs[name].media).kind == "text":
        files.add(media.tokenizer)
    further = {file: content for file, content in model.tokenizers.items() if file in files}
    return {"tokenizer": model.tokenizer if TOKENIZER in files else None, "tokenizers": further}


def _combined(bundles: Mapping[str, Bundle], folder: Path) -> dict[str, Bundle]:
    """Move the files of outputs together, with every weight once, and return the outputs with the new names."""
    (folder / GOLDENS).mkdir()
    for bundle in bundles.values():
        for file in bundle.tokenizer_files:
            shutil.copyfile(bundle.path(file), folder / file)
    graphs = _shared_graphs(bundles, folder)
    return {
        name: dataclasses.replace(
            bundle, output=name, graphs=graphs[name],
            golden=_moved(bundle.path(bundle.golden), folder / GOLDENS / f"{name}.npz"),
            conditions=tuple(_with_null(bundle, condition, folder) for condition in bundle.conditions),
        )
        for name, bundle in bundles.items()
    }  # fmt: skip


def _shared_graphs(bundles: Mapping[str, Bundle], folder: Path) -> dict[str, dict[str, Graph]]:
    """Write the graphs of all outputs, equal ones once, with one file of weights; return them by output and role."""
    (folder / GRAPHS).mkdir()
    files: dict[bytes, str] = {}  # by the hash of what is in it
    graphs: dict[str, dict[str, Graph]] = {name: {} for name in bundles}
    with (folder / WEIGHTS).open("wb") as data:
        places: dict[bytes, int] = {}  # of weights, by their hash
        for name, role, graph in ((n, role, graph) for n, b in bundles.items() for role, graph in b.graphs.items()):
            content, shares = _with_shared_weights(bundles[name].path(graph.file), places, data)
            digest = hashlib.sha256(content).digest()
            if digest not in files:
                files[digest] = _free_name(name, role, files.values())
                (folder / files[digest]).write_bytes(content)
            weights = WEIGHTS if shares else None
            graphs[name][role] = dataclasses.replace(graph, file=files[digest], sha256=digest.hex(), data=weights)
    if not places:
        (folder / WEIGHTS).unlink()
    hashed = sha256(folder / WEIGHTS) if places else None
    return {
        name: {role: dataclasses.replace(g, data_sha256=hashed if g.data else None) for role, g in of_output.items()}
        for name, of_output in graphs.items()
    }


def _free_name(output: str, role: str, taken: Collection[str]) -> str:
    """Return a graph's file: an input's is for all outputs, but for one whose graph differs."""
    own, shared = (f"{GRAPHS}/{name}.onnx" for name in (f"{output}.{role}", role))
    return shared if role.startswith((INPUT, EMBED)) and shared not in taken else own


def _with_shared_weights(path: Path, places: dict[bytes, int], data: BinaryIO) -> tuple[bytes, bool]:
    """Return an ONNX file whose weights lie in the file that all graphs share, and whether it has any there."""
    model = ir.load(path)
    shared = False
    for value in (value for graph in model.graphs() for value in graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or not leaves(tensor):
            continue
        content, shared = tensor.tobytes(), True
        digest = hashlib.sha256(content).digest()
        if digest not in places:
            places[digest] = _append(data, content)
        shape = ir.Shape(tensor.shape.numpy())
        value.const_value = ir.ExternalTensor(
            Path(WEIGHTS).name, places[digest], len(content), tensor.dtype, shape=shape, name=tensor.name or ""
        )
    return ir.to_proto(model).SerializeToString(deterministic=True), shared


def _append(data: BinaryIO, content: bytes) -> int:
    """Append a weight to a file, aligned, and return its place."""
    at = data.tell()
    step = PAGE if len(content) >= PAGE else ALIGNED
    start = -(-at // step) * step
    data.write(b"\0" * (start - at) + content)
    return start


def _moved(file: Path, to: Path) -> str:
    """Move a file into the combined bundle, and return its name there."""
    file.rename(to)
    return f"{to.parent.name}/{to.name}"


def _with_null(bundle: Bundle, condition: Condition, folder: Path) -> Condition:
    if condition.null_file is None:
        return condition
    file = f"{NULLS}/{condition.tensor}.npy"
    (folder / NULLS).mkdir(exist_ok=True)
    shutil.copyfile(bundle.path(condition.null_file), folder / file)
    return dataclasses.replace(condition, null=file)
