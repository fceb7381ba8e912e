"""What half precision can't hold stays float32, with the reason; masks still mask; other graphs are refused."""

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from halved import FLOAT, HALF, error_of_half, halve, reasons, relative, run, run_half, write
from tolerances import LIMITS
from torch import Tensor, nn

from mmgen.export.base.dtypes import load
from mmgen.export.half.islands import LIMIT
from mmgen.export.half.precision import half_share, to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.runtime.base.errors import MmgenError


class Residual(nn.Module):
    """Pre-norm blocks on a residual stream that a factor makes as large as those of large DiTs."""

    def __init__(self, factor: float, width: int = 64, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.blocks = nn.ModuleList(
            nn.Sequential(norm(width), nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
            for _ in range(3)
        )
        with torch.no_grad():
            for block in self.blocks:
                block[3].weight.mul_(100)
        self.out = nn.Sequential(norm(width), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.factor * block(x)
        return self.out(x)


class RMSNorm(nn.Module):
    """As language models write it: the mean square is a tensor of the graph."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.scale


class TestRanges:
    def test_a_residual_stream_beyond_half_survives(self, tmp_path: Path) -> None:
        path, feeds = write(tmp_path, Residual(5e3), x=torch.randn(2, 16, 64))
        error, halved = error_of_half(path, feeds)
        assert error < LIMITS["half, residual stream"]
        assert halved.share.weight_bytes > 0.95  # the products behind the norms

        ranges = measure_ranges(path, [feeds])
        for tensor, reason in reasons(halved).items():
            measured = ranges[tensor.rpartition("/")[2]]
            assert measured > LIMIT
            assert reason == f"range {measured:.3g} near 65504"
        assert len(halved.islands) == 6  # of three blocks, the product with the factor and the sum

    def test_without_islands_it_does_not(self, tmp_path: Path) -> None:
        path, feeds = write(tmp_path, Residual(5e3), x=torch.randn(2, 16, 64))
        target, halved = halve(path, feeds, islands=False)
        assert not np.isfinite(run_half(target, feeds)[0]).all()
        assert halved.islands == ()

    def test_a_product_whose_own_result_is_large_is_float32_and_named(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 64))
        nn.init.normal_(net[1].weight, std=1e4)
        path, feeds = write(tmp_path, net, x=torch.randn(4, 64))
        error, halved = error_of_half(path, feeds)
        assert error < LIMITS["half, residual stream"]
        assert all(island.tensor.startswith("1/") for island in halved.islands)
        stored = [
            v.dtype.name
            for v in load(tmp_path / "condition-half.onnx").graph.initializers.values()
            if v.shape == (64, 64)
        ]
        assert sorted(stored) == [FLOAT, HALF, HALF]

    @pytest.mark.parametrize("factor", [300.0, 1e-3])
    def test_a_norm_of_many_operators_keeps_its_statistics(self, tmp_path: Path, factor: float) -> None:
        class Net(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:  # squares of 1e6, and of 1e-6
                return super().forward(factor * x)

        path, feeds = write(tmp_path, Net(RMSNorm(64), nn.Linear(64, 64)), x=torch.randn(4, 64))
        error, halved = error_of_half(path, feeds)
        assert error < LIMITS["half, one layer"]
        assert "sums are accumulated in float32" in reasons(halved).values()

    def test_the_cube_in_gelu_may_overflow(self, tmp_path: Path) -> None:
        path, feeds = write(tmp_path, nn.Sequential(nn.Linear(64, 64), nn.GELU("tanh")), x=torch.randn(4, 64))
        feeds = {"x": 150 * feeds["x"]}
        cubes = [n.outputs[0].name for n in load(path).graph if n.op_type == "Pow"]
        assert measure_ranges(path, [feeds])[cubes[0]] > 65504
        error, halved = error_of_half(path, feeds)
        assert error < LIMITS["half, one layer"]
        assert halved.islands == ()

    def test_a_tensor_that_was_not_measured_is_an_error(self, tmp_path: Path) -> None:
        path, _ = write(tmp_path, Residual(1.0), x=torch.randn(2, 16, 64))
        with pytest.raises(
            MmgenError, match=r"range of tensor \w+ wasn't measured; measure the ranges of the same file"
        ):
            to_half(path, tmp_path / "half.onnx", {}, role="condition")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["condition.onnx", "condition.onnx.data"]

    def test_ranges_are_those_of_torch(self, tmp_path: Path) -> None:
        net = Residual(10.0)
        path, feeds = write(tmp_path, net, x=torch.randn(2, 16, 64))
        seen: dict[str, float] = {}
        for name, module in net.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.register_forward_hook(
                    lambda _, inputs, out, name=name: seen.update({name: float(out.detach().abs().max())})
                )
        runs = [feeds, {"x": 3 * feeds["x"]}]
        largest: dict[str, float] = {}
        for feed in runs:
            net(torch.from_numpy(feed["x"]))
            largest = {name: max(value, largest.get(name, 0)) for name, value in seen.items()}
        ranges = measure_ranges(path, runs)
        norms = [n.outputs[0].name for n in load(path).graph if n.op_type == "LayerNormalization"]
        np.testing.assert_allclose([ranges[name] for name in norms], list(largest.values()), rtol=LIMITS["ranges"])
        assert ranges["x"] == np.abs(runs[1]["x"]).max()

    def test_the_first_broken_tensor_is_named(self, tmp_path: Path) -> None:
        net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        with torch.no_grad():
            net[1].bias[5] = torch.nan
        path, feeds = write(tmp_path, net, x=torch.randn(2, 8))
        with pytest.raises(MmgenError, match=r"graph condition: tensor linear_1 \(Gemm\) in float32, got NaN"):
            measure_ranges(path, [feeds])
        with pytest.raises(MmgenError, match="graph condition: input x in float32, got NaN"):
            measure_ranges(path, [{"x": np.full((2, 8), np.nan, np.float32)}])

    def test_the_weights_are_read_where_they_are(self, tmp_path: Path) -> None:
        path, feeds = write(tmp_path, Residual(1.0), x=torch.randn(2, 16, 64))
        before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        measure_ranges(path, [feeds])
        assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


class Attention(nn.Module):
    """Attention that hides some tokens, in the ways that people write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.qkv = way, nn.Linear(32, 96)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        seen = seen[:, None, :]
        match self.way:
            case "sdpa":
                return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            case "fill":
                scores = (q @ k.mT).masked_fill(~seen, -torch.inf)
            case "fill of the largest":
                scores = (q @ k.mT).masked_fill(~seen, torch.finfo(torch.float32).min)
            case "add":
                scores = q @ k.mT + (1 - seen.float()) * torch.finfo(torch.float32).min
            case _:
                scores = q @ k.mT + torch.where(seen, 0.0, float(self.way))
        return scores.softmax(-1) @ v


class TestMasks:
    @pytest.mark.parametrize("way", ["sdpa", "fill", "add", "-1e9", "-1e4"])
    def test_masked_tokens_stay_masked_and_scores_half(self, tmp_path: Path, way: str) -> None:
        seen = torch.arange(8) < torch.tensor([[5], [8], [1]])
        path, feeds = write(tmp_path, Attention(way), role="step", x=torch.randn(3, 8, 32), seen=seen)
        error, halved = error_of_half(path, feeds, role="step")
        assert error < LIMITS["half, one layer"]
        assert halved.islands == ()

    @pytest.mark.parametrize("way", ["sdpa", "fill of the largest", "add", "-1e9"])
    def test_rows_that_see_nothing_are_before_the_loop_what_they_are_in_float32(self, tmp_path: Path, way: str) -> None:
        """Padding is such rows; nobody reads them but the comparison."""
        seen = torch.arange(8) < torch.tensor([[5], [0], [1]])
        x = 3 * torch.randn(3, 8, 32)  # scores beyond 8, which half precision adds to its largest number
        path, feeds = write(tmp_path, Attention(way), x=x, seen=seen)
        assert relative(run(path, feeds)[0], Attention(way)(x, seen).detach().numpy()) < LIMITS["traced graph"]
        error, _ = error_of_half(path, feeds)
        assert error < LIMITS["half, one layer"]

    @pytest.mark.parametrize("way", ["add", "-1e9"])
    def test_a_row_with_nothing_to_see_is_no_nan(self, tmp_path: Path, way: str) -> None:
        path, feeds = write(tmp_path, Attention(way), x=torch.randn(3, 8, 32), seen=torch.zeros(3, 8, dtype=torch.bool))
        target, _ = halve(path, feeds)
        assert np.isfinite(run_half(target, feeds)[0]).all()

    def test_a_large_constant_that_is_no_mask_is_kept(self, tmp_path: Path) -> None:
        class Net(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return torch.maximum(super().forward(x) * 1e3, torch.tensor(-1e5)) / 1e3

        path, feeds = write(tmp_path, Net(16, 16), x=torch.randn(4, 16))
        error, halved = error_of_half(path, feeds)
        assert error < LIMITS["half, one layer"]
        assert "weight up to 1e+05, above 65504" in reasons(halved).values()


class TestWeights:
    def layers(self, scale: float) -> nn.Sequential:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, bias=False))
        with torch.no_grad():
            net[1].weight.mul_(scale)
        return net

    @pytest.mark.parametrize(
        ("scale", "reason"),
        [
            (1e6, "weight up to 1.25e+05, above 65504"),
            (1e-7, "float16 changes the weight by 100%, 100% of it becomes 0"),
        ],
    )
    def test_that_half_cannot_hold_stay_float32(self, tmp_path: Path, scale: float, reason: str) -> None:
        path, feeds = write(tmp_path, self.layers(scale), x=torch.randn(4, 64) * 1e-3)
        error, halved = error_of_half(path, feeds)
        assert error < LIMITS["half, one layer"]
        (island,) = [i for i in halved.islands if "weight" in i.reason]
        assert island.reason == reason
        assert island.tensor == "1.weight"
        assert halved.share.weight_bytes == pytest.approx(1 / 3, abs=0.02)  # 2 bytes of 2 + 4

    def test_with_nan_are_an_error(self, tmp_path: Path) -> None:
        path, _ = write(tmp_path, self.layers(math.nan), x=torch.randn(4, 64))
        with pytest.raises(MmgenError, match=r"graph condition: weight .* holds NaN"):
            to_half(path, tmp_path / "half.onnx", {}, role="condition")

    def test_none_of_them_half_is_an_error(self, tmp_path: Path) -> None:
        path, feeds = write(tmp_path, nn.Sequential(self.layers(1e6)[1]), role="step", x=torch.randn(4, 64))
        with pytest.raises(MmgenError, match="no weight became half precision, got 1 operations with float32 weights"):
            halve(path, feeds, role="step")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["step.onnx", "step.onnx.data"]

    def test_none_of_them_half_before_the_loop_is_an_error(self, tmp_path: Path) -> None:
        """A policy's only layer on a state in millimetres."""
        path, feeds = write(tmp_path, nn.Sequential(self.layers(1e6)[1]), x=torch.randn(4, 64))
        _, halved = halve(path, feeds)
        assert halved.share.weight_bytes == 0 and "weight up to" in " ".join(reasons(halved).values())

    def test_are_never_all_in_memory(self, tmp_path: Path) -> None:
        net = nn.Sequential(*(nn.Linear(512, 512) for _ in range(16)))  # 16 MiB
        path, feeds = write(tmp_path, net, x=torch.randn(4, 512))
        ranges = measure_ranges(path, [feeds])
        tracemalloc.start()
        shares: list[float] = []
        to_half(path, tmp_path / "half.onnx", ranges, role="condition", progress=shares.append)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20
        assert shares == sorted(shares) and shares[-1] == 1

    def test_read_in_both_types_are_stored_in_both(self, tmp_path: Path) -> None:
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(32, 32))

            def forward(self, x: Tensor) -> Tensor:
                return (x @ self.weight).tanh() @ self.weight * 1e4 + (x * 1e6 @ self.weight).tanh()

        path, feeds = write(tmp_path, Tied(), x=torch.randn(4, 32))
        target, _ = halve(path, feeds)
        assert sorted(v.dtype.name for v in load(target).graph.initializers.values() if v.shape == (32, 32)) == [
            FLOAT,
            HALF,
        ]


class TestGraphs:
    def test_with_a_loop_are_refused(self, tmp_path: Path) -> None:
        body = "body (int64 i, bool go, float[2] x) => (bool go2, float[2] y) { go2 = Identity(go) y = Add(x, x) }"
        text = f"""<ir_version: 10, opset_import: ["": 18]> g (float[2] x, int64 n, bool go) => (float[2] y)
        {{ [twice] y = Loop <body = {body}> (n, go, x) }}"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "loop.onnx")
        with pytest.raises(MmgenError, match=r"node twice \(Loop\) holds a graph of its own"):
            to_half(tmp_path / "loop.onnx", tmp_path / "half.onnx", {}, role="condition")

    def test_that_are_not_there_are_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(MmgenError, match="can't be read as ONNX"):
            measure_ranges(tmp_path / "none.onnx", [])

    def test_share_is_counted_in_the_file(self, tmp_path: Path) -> None:
        text = """<ir_version: 10, opset_import: ["": 18]> g (float[2] x) => (float[2] y)
        <float[2] a = {1, 2}, float16[2] b = {1, 2}>
        { s = Add(x, a) h = Cast<to = 10>(s) m = Mul(h, b) y = Cast<to = 1>(m) n = Shape(y) }"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
        share = half_share(tmp_path / "g.onnx")
        assert share.weight_bytes == pytest.approx(4 / 12)
        assert share.operations == 2 / 4
