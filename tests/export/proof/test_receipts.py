"""Receipts of single graphs: what an error is measured against, and where it begins."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmgen.export.graphs.latent import Source
from mmgen.export.proof.receipts import _compare, of_trace
from mmgen.export.proof.torch_run import Sample, call
from mmgen.export.tracing.trace import trace
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Flow
from mmgen.runtime.storage.tensors import K


def test_x0_is_measured_against_the_terms_it_is_the_difference_of() -> None:
    """At timestep 875 of a linear schedule x0 = 44 (x - out), and so is its error 44 times that of out."""
    random = np.random.default_rng(0)
    x, x0 = random.standard_normal((2, 1, 4, 8, 8))
    out = x - x0 / 44
    wrong = out * (1 + 1e-3 * random.standard_normal(out.shape))
    inputs = {names.PREDICTION: np.array([44.0, -44.0]), names.STATE: np.stack([x] * K)}
    truth, got = ({names.X0: 44 * (x - o), names.NEXT_STATE: np.stack([o] * K)} for o in (out, wrong))
    *_, state, found = sorted(_compare(2, "step", "fp16", got, Sample(inputs, truth), Flow()), key=lambda r: r.tensor)
    assert found.tensor == names.X0 and found.measured == pytest.approx(state.measured, rel=0.1)
    flow = inputs | {names.PREDICTION: np.array([1.0, -44.0])}  # a first term smaller than x0: x0 itself
    *_, alone = sorted(_compare(2, "step", "fp16", got, Sample(flow, truth), Flow()), key=lambda r: r.tensor)
    assert alone.measured == pytest.approx(44 * state.measured, rel=0.1)


class Means(nn.Module):
    """Whose middle torch's ONNX exporter translates as a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("place", torch.tensor([0, 0, 0, 1]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.zeros_like(x).scatter_reduce(1, self.place.expand_as(x), x, "mean")
        return self.last(x)


def test_what_torch_and_onnx_make_otherwise_is_named_with_its_line(tmp_path: Path) -> None:
    source = Source("encode", Means(), {names.MEDIA: torch.randn(3, 4)}, {names.MEDIA: ("B",)}, (names.LATENTS,))
    samples = [call(source, {names.MEDIA: np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)})]
    program = trace(source, tmp_path / "encode.onnx")
    line = r"it begins at \w+ scatter_reduce, \S*test_receipts\.py:\d+: x = torch\.zeros_like\(x\)\.scatter_reduce"
    with pytest.raises(MmgenError, match=line):
        of_trace(source, tmp_path / "encode.onnx", program, samples, Flow())
