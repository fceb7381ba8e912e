"""An ONNX file that somebody else made, read with checks: whole, standard, float32, with weights in its own folder."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass

from mmgen.export.base.dtypes import name_of
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.files.regular import open_regular, read_regular
from mmgen.runtime.storage.graph_file import LARGEST, locations
from mmgen.runtime.storage.schema import TensorSpec

OPSET = 18  # what the exporter writes; other versions of the operators are converted to it
STANDARD = ("", "ai.onnx")
DTYPES = (ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)  # of inputs and outputs
AGAIN = "get the file again, or export it again"


@dataclass(frozen=True)
class GraphFile:
    """A checked ONNX file."""

    path: Path
    model: ir.Model  # of the operators of ``OPSET``, without functions; its weights are still on disk
    inputs: Mapping[str, TensorSpec]  # by name, in the file's order; a size that may vary is a string
    outputs: Mapping[str, TensorSpec]
    files: tuple[Path, ...]  # it and those with its weights


def read_graph_file(path: Path) -> GraphFile:
    """Read an ONNX file.

    Raises:
        MmgenError: it can't be read, or isn't valid ONNX; weights that are outside its folder, missing or cut short;
            an operator that isn't standard; operators of a version that can't be converted; weights, inputs or outputs
            of a type that a float32 model doesn't have.
    """
    content = read_regular(path, LARGEST, remedy="give the path of an ONNX file")
    files = _files(path, content)
    try:
        model = ir.load(path)
        _check_external(path, model)
        onnx.checker.check_model(str(path))
        InlinePass()(model)
    except MmgenError:
        raise
    except (OSError, DecodeError, ValueError, onnx.checker.ValidationError, ir.passes.PassError) as error:
        raise MmgenError(f"{path} is not valid ONNX ({_first_line(error)})", remedy=AGAIN) from error
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in STANDARD:
            raise MmgenError(
                f"{path}: operator {node.op_type} {node.name or ''}".rstrip(),
                got=f"the domain {shown(node.domain)}",
                wanted="operators of standard ONNX",
                remedy="export the model without a runtime's own operators, before it is optimised for one",
            )
    model = _converted(path, model)
    graph = model.graph
    for name, value in graph.initializers.items():
        if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            raise MmgenError(
                f"{path}: weight {name}",
                got=name_of(value.dtype),
                wanted="float32",
                remedy="take the float32 export; mmgen makes half precision of it itself, with --fp16",
            )
    given = [value for value in graph.inputs if value.name not in graph.initializers]
    return GraphFile(
        path,
        model,
        {value.name or "": _spec(path, "input", value) for value in given},
        {value.name or "": _spec(path, "output", value) for value in graph.outputs},
        (path, *files),
    )


def with_shapes(model: ir.Model) -> ir.Model:
    """Return a copy in which every tensor has the type and the shape that follow, also through sizes as tensors.

    What the file itself says of them is left out: it may say one thing and be another.
    """
    stated = ir.to_proto(model)
    del stated.graph.value_info[:]
    return ir.from_proto(onnx.shape_inference.infer_shapes(stated, data_prop=True))


def _files(path: Path, content: bytes) -> tuple[Path, ...]:
    """Return the files in which an ONNX model keeps weights, all of them in its folder."""
    try:
        named = sorted({location.decode("utf-8") for location in locations(content)})
    except (IndexError, ValueError) as error:
        raise MmgenError(f"{path} is not ONNX ({error})", wanted="an ONNX file", remedy=AGAIN) from error
    folder = path.parent.resolve()
    for name in named:
        place = folder / name
        if not name or "\0" in name or not place.resolve().is_relative_to(folder):
            raise MmgenError(
                f"{path} has weights outside its folder",
                got=shown(name),
                wanted="a file in the same folder",
                remedy="copy the weights there, not as a link, or don't use this file",
            )
        with open_regular(place, wanted=f"weights of {path.name}", remedy="copy all files of the model"):
            pass
    return tuple(folder / name for name in named)


def _check_external(path: Path, model: ir.Model) -> None:
    for tensor in _tensors(model):
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        size = Path(tensor.path).stat().st_size
        end = (tensor.offset or 0) + (tensor.nbytes if tensor.length is None else tensor.length)
        if end > size or tensor.length not in (None, tensor.nbytes):
            raise MmgenError(
                f"{tensor.path}: weight {tensor.name} of {path.name}",
                got=f"{size} bytes in the file, of which {tensor.length} are the weight's",
                wanted=f"{end} in the file, and {tensor.nbytes}",
                remedy="copy all files of the model again",
            )


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _converted(path: Path, model: ir.Model) -> ir.Model:
    """Return a model of the operators of ``OPSET``."""
    opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    if opset == OPSET:
        return model
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(onnx.load(path), OPSET))
        onnx.checker.check_model(ir.to_proto(converted))
        InlinePass()(converted)
    except Exception as error:  # the converter raises what it likes
        raise MmgenError(
            f"{path}: operators of version {opset} ({_first_line(error)})",
            wanted=f"opset {OPSET}, or one that can be converted to it",
            remedy=f"export the model with opset_version={OPSET}",
        ) from error
    return converted


def _spec(path: Path, what: str, value: ir.Value) -> TensorSpec:
    where = f"{path}: {what} {value.name}"
    if value.dtype not in DTYPES or isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
        got = "no tensor" if value.dtype is None else name_of(value.dtype)
        wanted = " or ".join(map(name_of, DTYPES))
        raise MmgenError(where, got=got, wanted=wanted, remedy="export the model with inputs and outputs of those")
    if value.shape is None:
        raise MmgenError(f"{where} has no shape", remedy="export the model with the shapes of its inputs and outputs")
    shape = tuple(size if isinstance(size, int) else str(size.value or f"?{i}") for i, size in enumerate(value.shape))
    return TensorSpec(value.name or "", name_of(value.dtype), shape)


def _first_line(error: BaseException) -> str:
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
