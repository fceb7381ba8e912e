"""The nearest code is found in two stages: it is the one that ``argmin`` finds, also among equal ones."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mmgen.export.base.lint import lint
from mmgen.export.graphs.latent import Source
from mmgen.export.networks.quantiser import first_smallest
from mmgen.export.tracing.trace import trace


class Search(nn.Module):
    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        return first_smallest(distance)


@pytest.mark.parametrize(("entries", "searches"), [(1024, 2), (1000, 2), (997, 1)])
def test_the_first_of_the_smallest_is_found(tmp_path: Path, entries: int, searches: int) -> None:
    rng = np.random.default_rng(0)
    distance = rng.integers(0, 50, (3, 5, 7, entries)).astype(np.float32)  # each several times
    want = distance.argmin(-1)
    assert np.array_equal(first_smallest(torch.from_numpy(distance)), want)
    path = tmp_path / "search.onnx"
    trace(Source("decode", Search(), {"distance": torch.from_numpy(distance)}, {"distance": ("B",)}, ("codes",)), path)
    lint(path)
    assert [node.op_type for node in onnx.load(path).graph.node].count("ArgMin") == searches
    (got,) = onnxruntime.InferenceSession(path).run(None, {"distance": distance[:2]})
    assert np.array_equal(got, want[:2])
