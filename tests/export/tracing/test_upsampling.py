"""Upsampling folded into the convolution behind it: the same pictures, from fewer operations."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from tolerances import LIMITS
from torch import nn

from mmgen.export.base.dtypes import load
from mmgen.export.base.lint import lint
from mmgen.export.graphs.latent import Source
from mmgen.export.tracing.counts import operations
from mmgen.export.tracing.trace import trace
from mmgen.runtime.verify import relative_rms


def traced(module: nn.Module, path: Path, channels: int = 3) -> Path:
    latents = torch.randn(3, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    trace(Source("decode", module, {"latents": latents}, {"latents": ("B",)}, ("media",)), path)
    lint(path)
    return path


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_diffusers_upsampling_is_the_same_with_four_ninths_of_the_operations(
    tmp_path: Path, bias: bool, batch: int
) -> None:
    torch.manual_seed(1)
    module = Upsample2D(3, use_conv=True, out_channels=6, bias=bias).eval()
    path = traced(module, tmp_path / "up.onnx")
    assert operators(path) == {"Conv": 4, "Concat": 1, "DepthToSpace": 1}
    assert operations(load(path).graph) == 2 * 4 * 3 * 6 * 10 * 14
    x = torch.randn(batch, 3, 5, 7)
    (got,) = onnxruntime.InferenceSession(path).run(None, {"latents": x.numpy()})
    with torch.no_grad():
        assert relative_rms(got, module(x).numpy()) < LIMITS["folded upsampling"]


def test_what_is_read_twice_or_isnt_such_a_pair_stays(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            large = nn.functional.interpolate(latents, scale_factor=2.0, mode="nearest")
            return large + self.conv(large)

    others = {
        "twice": Twice(),
        "wide": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 5, padding=2)),
        "strided": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 4, 3, padding=1, stride=2)),
        "grouped": nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 6, 3, padding=1, groups=3)),
        "smooth": nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 3, padding=1)),
        "tripled": nn.Sequential(nn.Upsample(scale_factor=3), nn.Conv2d(3, 4, 3, padding=1)),
    }
    for name, module in others.items():
        found = operators(traced(module, tmp_path / f"{name}.onnx"))
        assert found["Resize"] == found["Conv"] == 1, name


def test_a_weight_that_others_use_stays(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, latents: torch.Tensor) -> torch.Tensor:
            large = nn.functional.interpolate(self.conv(latents), scale_factor=2.0, mode="nearest")
            return self.conv(large)

    module, x = Shared().eval(), torch.randn(2, 3, 5, 7)
    path = traced(module, tmp_path / "shared.onnx")
    assert operators(path)["Conv"] == 5
    (got,) = onnxruntime.InferenceSession(path).run(None, {"latents": x.numpy()})
    with torch.no_grad():
        assert relative_rms(got, module(x).numpy()) < LIMITS["folded upsampling"]
