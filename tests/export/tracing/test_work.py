"""The exporter counts a graph's work as torch does."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmgen.export.graphs.latent import sources
from mmgen.export.tracing.trace import describe, trace
from mmgen.runtime.bench.roofline import count_operations
from mmgen.runtime.storage.schema import Role

ONE = dict.fromkeys("BGRN", 1)


@pytest.mark.parametrize("role", ["condition", "step", "decode", "encode"])
def test_operations_are_torch_s_and_weights_are_the_module_s(role: Role, tmp_path: Path) -> None:
    source = sources(tiny_model())[role]
    trace(source, tmp_path / "graph.onnx")
    graph = describe(tmp_path / "graph.onnx", tmp_path)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        source.module(*source.inputs.values())
    rows = 6 if role in ("condition", "step") else 3  # of the examples: two branches of three samples
    # What depends on the timestep alone is done once in the graph and for every row in torch, so one row is compared.
    assert counter.get_total_flops() == rows * count_operations(graph, ONE)
    twice = count_operations(graph, {"B": 2, "G": 1, "R": 2, "N": 1})
    assert twice == 2 * count_operations(graph, ONE) - (graph.operations or {}).get("", 0)
    tables = 4 * sum(p.numel() for m in source.module.modules() if isinstance(m, torch.nn.Embedding)
                     for p in m.parameters())  # fmt: skip
    weights = 4 * sum(p.numel() for p in source.module.parameters()) - tables
    assert graph.weight_bytes is not None
    assert 0.98 * weights <= graph.weight_bytes <= weights + 3000, "all but what was folded, and a codebook or so"
