"""Half precision: what becomes half, what stays float32 and why, and that the numbers survive it.

Graphs run in ONNX Runtime with every half value rounded to half (it computes half graphs in float32 on a CPU).
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from diffusers import DiTTransformer2DModel, VQModel
from diffusers_models import TINY_DIT, TINY_VQ, randomise
from halved import FLOAT, HALF, Feeds, halve, reasons, relative, run, run_half, write
from tiny import tiny_model
from tolerances import LIMITS
from torch import Tensor, nn

from mmgen.export.base.dtypes import load, mixed_types
from mmgen.export.graphs.latent import condition_source, decode_source, encode_source, step_source
from mmgen.export.tracing.trace import trace
from mmgen.runtime.storage.tensors import K


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
