"""Exports share torch's registry of translations, and write what they write without."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.onnx._internal.exporter import _registration
from torch.onnx._internal.exporter._registration import ONNXRegistry

from mmgen.export.graphs.latent import Source
from mmgen.export.tracing import trace as tracing
from mmgen.export.tracing.registry import registry_kept


def traced(folder: Path) -> dict[str, bytes]:
    """What a trace writes, by file."""
    folder.mkdir()
    torch.manual_seed(0)
    module = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
    tracing.trace(Source("condition", module, {"x": torch.ones(3, 4, 8)}, {"x": ("R",)}, ("y",)), folder / "graph.onnx")
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_it_is_filled_once_and_graphs_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fillings: list[object] = []
    apis = _registration.onnxscript_apis
    look_up: Callable[[], object] = apis.get_torchlib_ops
    monkeypatch.setattr(apis, "get_torchlib_ops", lambda: fillings.append(1) or look_up())  # type: ignore[func-returns-value]
    first, second = traced(tmp_path / "first"), traced(tmp_path / "second")
    assert len(fillings) <= 1, "once in this process, here or before"
    monkeypatch.setattr(tracing, "registry_kept", contextlib.nullcontext)
    assert first == second == traced(tmp_path / "torchs own")
    assert fillings, "torch's own way fills it"


def test_what_one_export_adds_is_its_own() -> None:
    target, original = torch.ops.aten.gelu.default, ONNXRegistry.from_torchlib
    with registry_kept():
        one, other = (ONNXRegistry().from_torchlib(opset_version=18) for _ in range(2))
    one.register_op(target, lambda x: x)
    assert [found.is_custom for found in one.get_decomps(target)] == [True, False]
    assert [found.is_custom for found in other.get_decomps(target)] == [False]
    assert ONNXRegistry.from_torchlib == original
