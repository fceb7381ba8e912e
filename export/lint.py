"""What no compiler that a bundle is for would take, found before it is tried: the safe set of TensorRT 10.3.

JetPack 6 has TensorRT 10.3, the oldest that mmgen builds for; what passes here passes TensorRT for RTX too, and every
later release.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from mmgen.export.dtypes import load, mixed_types, name_of
from mmgen.runtime.errors import MmgenError

OPSETS = range(17, 21)
TOP_K = 3840  # entries; TensorRT's limit
TYPES = frozenset(
    getattr(ir.DataType, name) for name in ("BOOL", "UINT8", "INT8", "INT32", "INT64", "FLOAT16", "BFLOAT16", "FLOAT")
)
REFUSED = {
    **dict.fromkeys(("NonZero", "Unique", "DFT", "Col2Im", "CumProd"), "TensorRT has no such operator"),
    **dict.fromkeys(("BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"), "TensorRT has no such operator"),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"), "TensorRT has no sequences"),
    **dict.fromkeys(("SequenceInsert", "SequenceLength", "SequenceMap"), "TensorRT has no sequences"),
    **dict.fromkeys(("SplitToSequence", "ConcatFromSequence"), "TensorRT has no sequences"),
    **dict.fromkeys(("RandomNormal", "RandomNormalLike"), "TensorRT ignores its seed; take noise as an input"),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), "TensorRT ignores its seed; take noise as an input"),
    **dict.fromkeys(("Bernoulli", "Multinomial"), "TensorRT can't draw; take noise as an input"),
    "Loop": "a loop belongs to the runtime; unroll it",
    "Attention": "needs TensorRT 10.14; write MatMul, Softmax, MatMul",
    "RMSNormalization": "needs TensorRT 10.15; write it as Mul, ReduceMean, Sqrt, Div",
    "RotaryEmbedding": "needs TensorRT 10.15; write it as Mul and Add",
}


def lint(path: Path) -> None:
    """Refuse an ONNX file that TensorRT 10.3 would refuse, or would take and compute something else.

    Raises:
        MmgenError: names the graph, every offending node and the reason for each.
    """
    model = load(path)
    reasons = [*_model(model), *_nodes(model), *_types(model)]
    reasons += [f"{label(node)} mixes types: {what}" for node, what in mixed_types(model)]
    if not reasons:
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            reasons.append(f"not valid ONNX: {str(error).strip().partition(chr(10))[0]}")
    if reasons:
        raise MmgenError(
            f"graph {path.stem} can't be built for every device: {'; '.join(reasons)}",
            remedy="change the model's forward so that it exports without these",
        )


def label(node: ir.Node) -> str:
    """How an error calls a node."""
    return f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')}".strip()


def _model(model: ir.Model) -> Iterator[str]:
    match model.opset_imports.get(""):
        case None:
            yield "its operator set isn't stated"
        case opset if opset not in OPSETS:
            yield f"operator set {opset}, wanted {OPSETS.start} to {OPSETS.stop - 1}"
    for domain, name, _ in model.functions:
        yield f"function {f'{domain}::' if domain else ''}{name} isn't inlined"


def _nodes(model: ir.Model) -> Iterator[str]:
    opset = model.opset_imports.get("", 0)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in ("", "ai.onnx"):
            yield f"{label(node)} is of the domain {node.domain!r}, not of standard ONNX"
        elif reason := REFUSED.get(node.op_type) or _use(node, opset):
            yield f"{label(node)}: {reason}"


def _use(node: ir.Node, opset: int) -> str | None:
    """Why this use of an operator is refused that others of it are not."""
    match node.op_type:
        case "ScatterElements" | "ScatterND" if node.attributes.get_string("reduction", "none") != "none":
            return "TensorRT scatters without a reduction only"
        case "TopK":
            count = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
            if count is None:
                return f"its K isn't a constant, wanted at most {TOP_K}"
            if (k := int(count.numpy().reshape(-1)[0])) > TOP_K:
                return f"K is {k}, wanted at most {TOP_K}"
        case "GroupNormalization" if opset >= 21:
            return "needs TensorRT 10.9; export with an operator set before 21"
        case "Resize" if node.attributes.get_int("antialias", 0):
            return "TensorRT can't resize with antialias"
        case "Pow" if (
            len(node.inputs) > 1 and node.inputs[1] and (dtype := node.inputs[1].dtype) and dtype.is_integer()
        ):
            return "an integer exponent needs TensorRT 10.8; make it a float"
        case "Einsum":
            equation = node.attributes.get_string("equation", "").replace(" ", "")
            terms = equation.partition("->")[0].split(",")
            if "..." in equation:
                return "an ellipsis in its equation needs TensorRT 10.12; name every axis"
            if any(len(set(term)) < len(term) for term in terms):
                return "a diagonal in its equation needs TensorRT 10.12"
    return None


def _types(model: ir.Model) -> Iterator[str]:
    for graph in model.graphs():
        tensors = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        for value in dict.fromkeys(tensors):
            if value.dtype is not None and value.dtype not in TYPES:
                also = "; TensorRT would silently make it float32" if value.dtype == ir.DataType.DOUBLE else ""
                yield f"tensor {value.name} is {name_of(value.dtype)}{also}"
