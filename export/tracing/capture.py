"""A torch module to a graph of torch's operators, with axes that vary; the ONNX exporter goes on from there."""

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmgen.export.base import origins
from mmgen.export.graphs.latent import Source
from mmgen.export.tracing.constants import constants_known
from mmgen.export.tracing.scripts import unscripted
from mmgen.export.tracing.sizes import sizes_watched
from mmgen.runtime.base.errors import MmgenError

_UNPRINTABLE = re.compile(r"\x1b\[[0-9;]*m")


def capture(source: Source) -> ExportedProgram:
    """Trace a module to a program of torch's operators.

    Axes of one name have one size, in all inputs; it may be 1 or more.

    Raises:
        MmgenError: torch can't trace the module, or an axis that must vary is of one size in it; it names the line.
    """
    axes = [source.axes.get(name, ()) for name in source.inputs]
    varying = [{i: Dim.DYNAMIC for i, axis in enumerate(names) if axis} for names in axes]
    inputs = tuple(source.inputs.values())
    shapes = dict(inspect.signature(source.module.forward).bind(*varying).arguments)
    module, fixed = source.module.eval(), list[str]()
    try:
        with (
            unscripted(module),
            _one_size(module, axes),
            constants_known(module, inputs),
            sizes_watched(fixed),
            _no_fast_path(),
            torch.no_grad(),
        ):
            program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    except MmgenError:
        raise
    except Exception as error:
        raise (_fixed(source, fixed) if fixed else untraceable(source, error)) from error
    if fixed:
        raise _fixed(source, fixed)
    return program


def _fixed(source: Source, lines: Sequence[str]) -> MmgenError:
    return MmgenError(
        f"graph {source.role}: the size of the batch becomes a plain number at {lines[0]}",
        remedy="use x.shape[0] as it is, without int() or len(), or reshape with -1",
    )


def untraceable(source: Source, error: Exception, program: ExportedProgram | None = None) -> MmgenError:
    """Build the error for a module that torch can't trace, or an operator that it can't translate."""
    cause: BaseException = error
    line = origins.of_error(error)
    while cause.__cause__ is not None:
        cause = cause.__cause__
        line = origins.of_error(cause) or line
    if program is not None:
        line = _line_of_node(error, program) or line
    at = f" at {line}" if line else ""
    return MmgenError(
        f"graph {source.role} can't be traced by torch.export{at}: {_reason(cause)}",
        remedy="change the module's forward so that torch.export takes it with a varying batch",
    )


def _line_of_node(error: BaseException, program: ExportedProgram) -> str:
    """Return the line of the node that the ONNX exporter couldn't translate, which its error names."""
    traces = {node.name: node.meta.get("stack_trace") or "" for node in program.graph.nodes}
    current: BaseException | None = error
    while current is not None:
        for name in re.findall(r"%(\w+) :", str(current)):
            if line := origins.of_trace(traces.get(name, "")):
                return line
        current = current.__cause__
    return ""


def _reason(error: BaseException) -> str:
    """Return an exception's message in one line."""
    lines = [line.strip() for line in _UNPRINTABLE.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _one_size(module: nn.Module, axes: Sequence[Sequence[str]]) -> Iterator[None]:
    """Tell torch that axes of one name have one size; it takes each axis of each input for a different one.

    A ``Dim`` of that name would say so too, and refuse a module that chooses its way by the size of a batch.
    """

    def check(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes: dict[str, int] = {}
        for x, names in zip(inputs, axes, strict=True):
            for i, name in enumerate(names):
                if name:
                    torch._check(x.shape[i] == sizes.setdefault(name, x.shape[i]))

    hook = module.register_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def _no_fast_path() -> Iterator[None]:
    """Disable the fused operator of ``nn.TransformerEncoderLayer`` in evaluation mode, which ONNX doesn't have."""
    enabled: Any = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
