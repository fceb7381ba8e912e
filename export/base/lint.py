"""Operators that TensorRT or ONNX Runtime would refuse, or compute wrongly, found before an engine is built."""

from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from mmgen.export.base.dtypes import load, mixed_types
from mmgen.export.base.origins import module_of, where
from mmgen.export.base.tensorrt_rules import node_reason, opset_reason, type_reasons
from mmgen.runtime.base.errors import MmgenError

RANDOM = (
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
)  # fmt: skip
UNSEEDED = "it draws by itself, whatever a request's seed; take noise as an input"
REMEDY = "change the model's forward so that it exports without these"

Reasons = dict[tuple[str, str], list[ir.Node]]  # by kind of operator and reason, the nodes


def lint(path: Path) -> None:
    """Refuse an ONNX file that TensorRT 10.3 would refuse, or would take and compute something else.

    Raises:
        MmgenError: names the graph and each reason once, with the module and the user's line of the first node.
    """
    model = load(path)
    anywhere, engines = list(_anywhere(model)), list(_for_engines(model, lines=True))
    if not anywhere and not engines:
        anywhere = _invalid(path)
    if reasons := [*anywhere, *engines]:
        raise MmgenError(
            f"graph {path.stem} can't be built for every device: {'; '.join(reasons)}",
            remedy=REMEDY if anywhere else f"{REMEDY}, or export for CPUs alone: --target cpu",
        )


def lint_for_cpu(path: Path) -> tuple[str, ...]:
    """Return why TensorRT can't build an ONNX file that is for CPUs alone; () if it can.

    Raises:
        MmgenError: it isn't valid ONNX, or draws numbers that no seed decides.
    """
    model = load(path)
    if reasons := list(_anywhere(model)) or _invalid(path):
        raise MmgenError(
            f"graph {path.stem} can't be run: {'; '.join(reasons)}",
            remedy=REMEDY,
        )
    return tuple(_for_engines(model, lines=False))


def label(node: ir.Node) -> str:
    """Return the name of a node for an error."""
    return f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')}".strip()


def _anywhere(model: ir.Model) -> Iterator[str]:
    """Yield the reasons why no supported runtime would compute a graph as intended."""
    for domain, name, _ in model.functions:
        yield f"function {f'{domain}::' if domain else ''}{name} isn't inlined"
    reasons: Reasons = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain not in ("", "ai.onnx"):
            yield f"{label(node)} is of the domain {node.domain!r}, not of standard ONNX"
        elif node.op_type in RANDOM:
            reasons.setdefault((node.op_type, UNSEEDED), []).append(node)
    yield from _phrases(reasons, lines=True)


def _for_engines(model: ir.Model, *, lines: bool) -> Iterator[str]:
    if reason := opset_reason(model):
        yield reason
    opset, reasons = model.opset_imports.get("", 0), Reasons()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in ("", "ai.onnx") and (reason := node_reason(node, opset)):
            reasons.setdefault((node.op_type, reason), []).append(node)
    yield from _phrases(reasons, lines=lines)
    yield from type_reasons(model)
    for node, what in mixed_types(model):
        yield f"{label(node)} mixes types: {what}"


def _phrases(reasons: Reasons, *, lines: bool) -> Iterator[str]:
    """Yield one phrase for each reason, with the first node's place in the model and in the user's code."""
    for (_, reason), nodes in reasons.items():
        place = where(nodes[0]) if lines else module_of(nodes[0])
        more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
        yield f"{label(nodes[0])}{f' ({place})' if place else ''}{more}: {reason}"


def _invalid(path: Path) -> list[str]:
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"not valid ONNX: {str(error).strip().partition(chr(10))[0]}"]
    return []
