"""Receipts (validation records) 1 and 2: each graph alone, float32 ONNX against torch and half against float32."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from torch.export import ExportedProgram

from mmgen.export.base.answer import answers
from mmgen.export.base.dtypes import is_single, load
from mmgen.export.graphs.latent import Source
from mmgen.export.half.emulate import emulated
from mmgen.export.half.islands import LARGEST
from mmgen.export.proof import masked_receipts
from mmgen.export.proof.first_wrong import first_wrong, torch_values
from mmgen.export.proof.masked_receipts import LOGITS
from mmgen.export.proof.torch_run import Arrays, Sample
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage import limits
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked, Process
from mmgen.runtime.storage.schema import Receipt, Role
from mmgen.runtime.storage.tensors import K
from mmgen.runtime.verify import compare_media, relative_rms, require, share

Policy = Literal["fp32", "fp16"]


def against_torch(
    role: Role, path: Path, samples: list[Sample], process: Process
) -> tuple[tuple[Receipt, ...], list[Sample]]:
    """Compare a float32 graph with torch: level 1.

    Returns:
        The receipts; the same calls with the graph's outputs in place of torch's.

    Raises:
        MmgenError: a comparison fails.
    """
    answered = _answer(role, path, samples)
    return require(_worst(_compare_calls(1, role, "fp32", answered, samples, process))), answered


def of_trace(source: Source, path: Path, program: ExportedProgram, samples: list[Sample], process: Process) -> None:
    """Compare a graph as it was traced with torch (level 1), while torch's operators are known.

    Raises:
        MmgenError: a comparison fails; it names the first tensor that differs from torch's, with its module and line.
    """
    try:
        against_torch(source.role, path, samples, process)
    except MmgenError as error:
        made = {v.name or "": node for node in load(path).graph for v in node.outputs if is_single(v)}
        onnx, torch = answers(source.role, path, list(made)), torch_values(program, source.inputs, made)
        calls = (sample.inputs for sample in samples)
        if not (place := first_wrong(made, onnx, torch, calls, limits.GRAPH_RMS["fp32"])):
            raise
        raise MmgenError(
            f"{error.what}; it begins at {place}",
            got=error.got,
            wanted=error.wanted,
            remedy="write that line with other operators; torch's ONNX exporter translates it wrongly",
        ) from error


def against_float(
    role: Role, source: Path, path: Path, samples: list[Sample], process: Process, ranges: Mapping[str, float]
) -> tuple[Receipt, ...]:
    """Compare a half graph with float32 (level 2): rounded as on a GPU and as ONNX Runtime runs it, the worse.

    Args:
        source: the float32 graph.
        path: the same in half precision.
        samples: calls with the float32 graph's outputs.
        ranges: largest magnitude of each tensor in float32, in the graph's order.

    Raises:
        MmgenError: a comparison fails; it names the first tensor that half precision can't hold, if one is to blame.
    """
    with emulated(path) as rounded:
        receipts = _compare_calls(2, role, "fp16", _answer(role, rounded, samples), samples, process)
    receipts += _compare_calls(2, role, "fp16", _answer(role, path, samples[:1]), samples[:1], process)
    try:
        return require(_worst(receipts))
    except MmgenError as error:
        if tensor := _overflow(path, ranges):
            what = f"half precision overflows first in tensor {tensor}: {ranges[tensor]:.3g}"
        elif place := _first_wrong(role, source, path, samples):
            what = f"it begins at {place}"
        else:
            raise
        remedy = "keep it in float32: export with islands, or with --fp32"
        raise MmgenError(f"{error.what}; {what}", got=error.got, wanted=error.wanted, remedy=remedy) from error


def _first_wrong(role: Role, source: Path, path: Path, samples: list[Sample]) -> str:
    """Find where a half graph diverges from the float32 one."""
    there = {value.name for node in load(source).graph for value in node.outputs if is_single(value)}
    made = {v.name or "": node for node in load(path).graph for v in node.outputs if v.name in there}
    if not made:
        return ""
    with emulated(path) as rounded:
        half, single = (answers(role, graph, list(made)) for graph in (rounded, source))
        return first_wrong(made, half, single, (sample.inputs for sample in samples), limits.GRAPH_RMS["fp16"])


def _compare_calls(
    level: int, role: Role, policy: Policy, got: list[Sample], wanted: list[Sample], process: Process
) -> list[Receipt]:
    return [
        dataclasses.replace(receipt, tensor=", ".join(filter(None, (receipt.tensor, truth.place))))
        for answer, truth in zip(got, wanted, strict=True)
        for receipt in _compare(level, role, policy, answer.outputs, truth, process)
    ]


def _compare(
    level: int, role: Role, policy: Policy, got: Arrays, sample: Sample, process: Process
) -> list[Receipt]:
    wanted = sample.outputs
    if role == "step" and isinstance(process, Masked):
        return masked_receipts.compare(level, policy, process, got, sample)
    if role == "decode":
        codes = (outputs.get(names.CODES) for outputs in (got, wanted))
        return compare_media(level, role, policy, got[names.MEDIA], wanted[names.MEDIA], *codes)
    receipts = []
    for name, truth in wanted.items():
        if not np.issubdtype(truth.dtype, np.floating):
            limit = limits.ENCODED_CODES[policy] if role == "encode" else 1.0
            receipts.append(Receipt(level, role, "share", share(got[name], truth), limit, name, at_least=True))
        elif name == names.NEXT_STATE:  # slot by slot: each is a quantity of its own
            receipts += [_rms(level, role, policy, got[name][k], truth[k], f"{name}[{k}]") for k in range(K)]
        elif role == "step" and name == names.X0:
            receipts.append(_rms(level, role, policy, got[name], truth, name, _noisy_term(sample.inputs)))
        else:
            receipts.append(_rms(level, role, policy, got[name], truth, name))
    return receipts


def _noisy_term(inputs: Arrays) -> np.ndarray:
    """Return the first term of x0 = p x + q out.

    Where noise dominates, x0 is a small difference of two large terms, and no nearer to the truth than they are.
    """
    term: np.ndarray = inputs[names.PREDICTION][0] * inputs[names.STATE][0]
    return term


def _rms(
    level: int,
    role: Role,
    policy: Policy,
    got: np.ndarray,
    truth: np.ndarray,
    name: str,
    term: np.ndarray | None = None,
) -> Receipt:
    """Measure the error as a share of the truth, or of a term of it that is larger."""
    measured, size = relative_rms(got, truth), np.linalg.norm(truth)
    if term is not None and np.linalg.norm(term) > size > 0:
        measured *= float(size / np.linalg.norm(term))
    return Receipt(level, role, "relative RMS", measured, limits.GRAPH_RMS[policy], name)


def _worst(receipts: list[Receipt]) -> list[Receipt]:
    """Select the worst of each figure: a failure before a pass, NaN before any number."""

    def quality(receipt: Receipt) -> tuple[bool, float]:
        value = receipt.measured if receipt.at_least else -receipt.measured
        return receipt.passed, -math.inf if math.isnan(value) else value

    return list({receipt.figure: receipt for receipt in sorted(receipts, key=quality, reverse=True)}.values())


def _answer(role: Role, path: Path, samples: list[Sample]) -> list[Sample]:
    """Run a graph on the same calls; where these have logits, which are no output of it, with its logits."""
    if LOGITS not in samples[0].outputs:
        answer = answers(role, path)
        return [dataclasses.replace(sample, outputs=answer(sample.inputs)) for sample in samples]
    tensors = {name: name for name in (names.NEXT_TOKENS, names.CODES)} | {LOGITS: masked_receipts.logits_of(path)}
    answer = answers(role, path, list(tensors.values()))
    made = [answer(sample.inputs) for sample in samples]
    return [
        dataclasses.replace(sample, outputs={name: outputs[tensor] for name, tensor in tensors.items()})
        for sample, outputs in zip(samples, made, strict=True)
    ]


def _overflow(path: Path, ranges: Mapping[str, float]) -> str | None:
    """Find the first tensor of a half graph, in its order, whose float32 range half precision can't hold."""
    half = {value.name for node in load(path).graph for value in node.outputs if value.dtype == ir.DataType.FLOAT16}
    return next((name for name, largest in ranges.items() if name in half and largest > LARGEST), None)
