"""Half precision: what becomes half, what stays float32 and why, and that the numbers survive it.

Graphs run in ONNX Runtime with every half value rounded to half (it computes half graphs in float32 on a CPU).
"""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
import torch
from diffusers import DiTTransformer2DModel, VQModel
from diffusers_models import TINY_DIT, TINY_VQ, randomise
from tiny import tiny_model
from tolerances import LIMITS
from torch import Tensor, nn

from mmgen.export.base.dtypes import load, mixed_types
from mmgen.export.graphs.latent import Source, condition_source, decode_source, encode_source, step_source
from mmgen.export.half.emulate import emulated
from mmgen.export.half.islands import LIMIT
from mmgen.export.half.precision import Halved, half_share, to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.export.tracing.trace import trace
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import Role
from mmgen.runtime.storage.tensors import K

Feeds = dict[str, np.ndarray]
FLOAT, HALF = "FLOAT", "FLOAT16"


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def run(path: Path, feeds: Feeds) -> list[np.ndarray]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


def run_half(path: Path, feeds: Feeds) -> list[np.ndarray]:
    assert run(path, feeds)  # it loads and runs as it is
    with emulated(path) as rounded:
        return run(rounded, feeds)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def write(
    folder: Path, module: nn.Module, role: Role = "condition", axes: Any = None, **inputs: Tensor
) -> tuple[Path, Feeds]:
    """Write a module as a float32 graph with one output; return it and the inputs it was traced with."""
    path = folder / f"{role}.onnx"
    leading = axes or dict.fromkeys(inputs, ("R",))
    trace(Source(role, module.eval(), inputs, leading, ("out",)), path)
    return path, {name: value.numpy() for name, value in inputs.items()}


def halve(path: Path, feeds: Feeds, role: Role = "condition", **options: Any) -> tuple[Path, Halved]:
    target = path.with_name(f"{path.stem}-half.onnx")
    return target, to_half(path, target, measure_ranges(path, [feeds]), role=role, **options)


def error_of_half(path: Path, feeds: Feeds, role: Role = "condition") -> tuple[float, Halved]:
    target, halved = halve(path, feeds, role)
    return relative(run_half(target, feeds)[0], run(path, feeds)[0]), halved


def types(path: Path) -> dict[str, str]:
    graph = load(path).graph
    tensors = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return {v.name or "": v.dtype.name for v in tensors if v.dtype is not None}


def reasons(halved: Halved) -> dict[str, str]:
    return {island.tensor: island.reason for island in halved.islands}


class DiT(nn.Module):
    """diffusers' transformer as the denoiser of a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer = DiTTransformer2DModel(**TINY_DIT)
        randomise(self)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
        return self.transformer(x, timestep.long(), label, return_dict=False)[0][:, : x.shape[1]]


class VQ(nn.Module):
    """diffusers' quantiser."""

    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        found, _, (_, _, codes) = self.model.quantize(latents / 0.18215)
        return found, codes.reshape(latents.shape[0], *latents.shape[2:])


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Feeds]:
    """Trace a step of a DiT with three samples and two branches, in the middle of a trajectory."""
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(0, 1000, (6,), generator=generator)
    model = tiny_model(denoiser=DiT().eval(), latent_shape=(3, 8, 8))
    source = step_source(model, [("label", label)])
    path = tmp_path_factory.mktemp("dit") / "step.onnx"
    trace(source, path)
    feeds = {name: torch.randn(value.shape, generator=generator).numpy() for name, value in source.inputs.items()}
    feeds |= {
        "label": label.reshape(2, 3).numpy(),
        "timestep": np.float32([999]),
        "x0_limit": np.float32([np.inf]),
        "guidance": np.float32([-1, 2]),
        "guidance_rescale": np.float32([0.5]),
    }
    return path, feeds


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Feeds]:
    torch.manual_seed(0)
    model = VQModel(**TINY_VQ)
    nn.init.normal_(model.quantize.embedding.weight)
    tiny = tiny_model(latent_shape=(3, 8, 8), quantiser=VQ(model).eval(), decoder=Decoder(model).eval())
    path = tmp_path_factory.mktemp("vq") / "decode.onnx"
    trace(decode_source(tiny), path)
    return path, {"latents": 0.2 * torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2)).numpy()}


class Decoder(nn.Module):
    def __init__(self, model: VQModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        return self.model.decoder(self.model.post_quant_conv(codes))


class TestStep:
    def test_a_dit_stays_close_with_nearly_all_weights_half(self, dit: tuple[Path, Feeds]) -> None:
        path, feeds = dit
        target, halved = halve(path, feeds, "step")
        for got, wanted in zip(run_half(target, feeds), run(path, feeds), strict=True):
            assert relative(got, wanted) < LIMITS["half, step of a DiT"]
        assert halved.share.weight_bytes > 0.95
        assert halved.share.operations > 0.7  # 0.735: guidance and solver are float32, no small part of two blocks

    def test_inputs_and_outputs_keep_their_types(self, dit: tuple[Path, Feeds]) -> None:
        path, feeds = dit
        target, _ = halve(path, feeds, "step")
        before, after = (load(p).graph for p in (path, target))
        for a, b in zip((*before.inputs, *before.outputs), (*after.inputs, *after.outputs), strict=True):
            assert (a.name, a.dtype, a.shape) == (b.name, b.dtype, b.shape)

    def test_the_state_passes_through_to_the_last_bit(self, dit: tuple[Path, Feeds]) -> None:
        path, feeds = dit
        target, _ = halve(path, feeds, "step")
        identity = np.eye(K, K + 3, dtype=np.float32)
        state, _ = run_half(target, feeds | {"transition": identity, "keep": np.zeros_like(feeds["keep"])})
        np.testing.assert_array_equal(state, feeds["state"])

    def test_solver_arithmetic_is_float32(self, dit: tuple[Path, Feeds]) -> None:
        target, halved = halve(*dit, "step")
        graph = load(target).graph
        solver = {"transition", "prediction", "x0_limit", "guidance", "noise", "known", "keep", "next_level"}
        reached = {v for v in graph.inputs if v.name in solver}
        for node in graph:
            if node.op_type != "Shape" and reached.intersection(node.inputs):
                reached.update(node.outputs)
                assert not [v.name for v in node.outputs if v.dtype is not None and v.dtype.name == HALF]
        assert "solver arithmetic around the denoiser" in reasons(halved).values()

    def test_the_sinusoid_of_the_timestep_is_float32(self, dit: tuple[Path, Feeds]) -> None:
        target, halved = halve(*dit, "step")
        waves = [node for node in load(target).graph if node.op_type in ("Sin", "Cos")]
        assert waves and all(node.inputs[0].dtype.name == FLOAT for node in waves)
        assert any(tensor.endswith("/cos") and "timestep" in why for tensor, why in reasons(halved).items())

    def test_without_metadata_the_choice_is_the_same(self, dit: tuple[Path, Feeds], tmp_path: Path) -> None:
        path, feeds = dit
        proto = onnx.load(path)
        for node in proto.graph.node:
            del node.metadata_props[:]
        onnx.save(proto, bare := tmp_path / "step.onnx")
        (_, with_names), (_, without) = halve(path, feeds, "step"), halve(bare, feeds, "step")
        assert with_names.share == without.share
        assert [i.reason for i in with_names.islands] == [i.reason for i in without.islands]

    def test_the_tiny_model_in_all_its_graphs(self, tmp_path: Path) -> None:
        model = tiny_model()
        conditioning = [("context", torch.randn(6, 2, 32, generator=torch.Generator().manual_seed(3)))]
        for source in (
            condition_source(model),
            step_source(model, conditioning),
            decode_source(model),
            encode_source(model),
        ):
            assert source is not None
            path = tmp_path / f"{source.role}.onnx"
            trace(source, path)
            feeds = {name: random_like(value, i) for i, (name, value) in enumerate(source.inputs.items())}
            target, halved = halve(path, feeds, source.role)
            for got, wanted in zip(run_half(target, feeds), run(path, feeds), strict=True):
                assert relative(got, wanted) < LIMITS["half, graphs of the tiny model"], source.role
            assert halved.share.weight_bytes > 0.75, source.role  # the codebook and its squares are a fifth of decode


def random_like(value: Tensor, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if value.dtype == torch.float32:
        return generator.standard_normal(value.shape, np.float32)
    return generator.integers(0, 10, value.shape).astype(value.numpy().dtype)


class TestDecode:
    def test_codes_are_the_same_and_pictures_nearly(self, vq: tuple[Path, Feeds]) -> None:
        path, feeds = vq
        target, halved = halve(path, feeds, "decode")
        (media, codes), (wanted_media, wanted_codes) = run_half(target, feeds), run(path, feeds)
        np.testing.assert_array_equal(codes, wanted_codes)
        assert media.dtype == np.uint8
        assert relative(media, wanted_media) < LIMITS["half, decoded picture"]
        assert halved.share.weight_bytes > 0.95

    def test_the_nearest_code_search_and_the_rounding_are_float32(self, vq: tuple[Path, Feeds]) -> None:
        target, halved = halve(*vq, "decode")
        for node in load(target).graph:
            pending = [node] if node.op_type in ("ArgMin", "Round") else []
            while pending:
                above = pending.pop()
                for value in above.inputs:
                    assert value is None or value.dtype.name != HALF or above.op_type == "Cast"
                    producer = value.producer() if value is not None else None
                    if producer is not None and producer.op_type not in ("Cast", "Conv"):
                        pending.append(producer)
        assert {"nearest-code search", "rounding to whole numbers"} <= set(reasons(halved).values())

    def test_an_encoder_that_ends_in_codes_is_half_up_to_the_search(self, tmp_path: Path) -> None:
        class Encoder(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.SiLU(), nn.Conv2d(32, 8, 3))
                self.codebook = nn.Parameter(torch.randn(16, 8))

            def forward(self, x: Tensor) -> Tensor:
                z = self.net(x).permute(0, 2, 3, 1)
                return (self.codebook.square().sum(1) - 2 * (z @ self.codebook.T)).argmin(-1)

        path, feeds = write(tmp_path, Encoder(), "encode", x=torch.randn(2, 3, 8, 8))
        target, _ = halve(path, feeds, "encode")
        found = {node.op_type: node.outputs[0].dtype for node in load(target).graph}
        assert (found["Conv"].name, found["MatMul"].name) == (HALF, FLOAT)
        np.testing.assert_array_equal(run(target, feeds)[0], run(path, feeds)[0])


class TestTypes:
    """Of every written graph."""

    @pytest.fixture(params=["dit", "vq"])
    def graph(self, request: pytest.FixtureRequest) -> Iterator[Path]:
        yield halve(*request.getfixturevalue(request.param), {"dit": "step", "vq": "decode"}[request.param])[0]

    def test_is_valid_and_mixes_no_types(self, graph: Path) -> None:
        onnx.checker.check_model(str(graph), full_check=True)
        onnx.shape_inference.infer_shapes(onnx.load(graph), check_type=True, strict_mode=True)
        assert mixed_types(load(graph)) == []

    def test_casts_stand_only_where_types_meet(self, graph: Path) -> None:
        seen = set()
        for node in load(graph).graph:
            if node.op_type != "Cast":
                continue
            source, result = node.inputs[0], node.outputs[0]
            assert source.const_value is None, "a weight is cast at run time"
            assert source.dtype != result.dtype, "a cast that changes nothing"
            assert source.producer() is None or source.producer().op_type != "Cast", "a chain of casts"
            assert (source, result.dtype) not in seen, "the same cast twice"
            seen.add((source, result.dtype))

    def test_no_weight_is_stored_that_nobody_reads(self, graph: Path) -> None:
        assert all(value.uses() for value in load(graph).graph.initializers.values())


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
