"""The graphs of a bundle, and torch's modules traced to ONNX."""

import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers.guiders.guider_utils import rescale_noise_cfg
from tiny import LATENT, tiny_model
from tolerances import LIMITS
from torch import Tensor, nn
from torch.nn import functional as F
from traced import call, play

from mmgen.export.base.origins import SCOPES, forget
from mmgen.export.graphs.latent import Source, StepGraph, decode_source, sources, step_source
from mmgen.export.tracing.trace import OPSET, describe, trace
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import Condition, Media
from mmgen.runtime.storage.tensors import K
from mmgen.runtime.verify import relative_rms

SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (5, 3)]  # (B, G)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Source, Path]]:
    """Every graph of the tiny model, as a module and as a file."""
    folder = tmp_path_factory.mktemp("graphs")
    files = {}
    for role, source in sources(tiny_model()).items():
        trace(source, folder / f"{role}.onnx")
        files[role] = (source, folder / f"{role}.onnx")
    return files


def random_inputs(source: Source, sizes: dict[str, int], seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    made = {}
    for name, example in source.inputs.items():
        axes = source.axes.get(name, ())
        shape = [sizes[axes[i]] if i < len(axes) and axes[i] else n for i, n in enumerate(example.shape)]
        if name == "x0_limit":
            made[name] = torch.full(shape, float("inf"))
        else:
            made[name] = (
                torch.randn(shape) if example.is_floating_point() else torch.randint(0, 10, shape).to(example.dtype)
            )
    return made


@pytest.mark.parametrize(("batch", "guides"), SIZES)
@pytest.mark.parametrize("role", ["condition", "step", "decode", "encode"])
def test_onnx_equals_torch_at_every_size(
    traced: dict[str, tuple[Source, Path]], role: str, batch: int, guides: int
) -> None:
    source, path = traced[role]
    inputs = random_inputs(source, {"B": batch, "G": guides, "R": batch * guides})
    for got, want in zip(play(path, inputs), call(source, inputs), strict=True):
        assert got.shape == want.shape and got.dtype == want.dtype
        if want.dtype == np.uint8:  # a number that is near .5 may be rounded either way
            assert np.abs(got.astype(int) - want).max() <= 1
        elif np.issubdtype(want.dtype, np.integer):
            assert np.array_equal(got, want)
        else:
            assert relative_rms(got, want) < LIMITS["traced graph"]


def test_every_varying_axis_has_its_name_and_no_other_varies(traced: dict[str, tuple[Source, Path]]) -> None:
    def shapes(role: str) -> dict[str, tuple[int | str, ...]]:
        path = traced[role][1]
        graph = describe(path, path.parent)
        return {spec.name: spec.shape for spec in (*graph.inputs, *graph.outputs)}

    assert shapes("condition") == {"label": ("R",), "hint": ("R", 3), "context": ("R", 2, 32)}
    assert shapes("step") == {
        "state": (K, "B", *LATENT), "transition": (K, K + 3), "prediction": (2,), "x0_limit": (1,), "input_scale": (1,),
        "timestep": (1,), "guidance": ("G",), "noise": ("B", *LATENT), "guidance_rescale": (1,),
        "known": (2, "B", *LATENT), "keep": ("B", *LATENT), "next_level": (2,),
        "context": ("G", "B", 2, 32), "next_state": (K, "B", *LATENT), "x0": ("B", *LATENT),
    }  # fmt: skip
    assert shapes("decode") == {"latents": ("B", *LATENT), "media": ("B", 16, 16, 3), "codes": ("B", 8, 8)}
    assert shapes("encode") == {"media": ("B", 16, 16, 3), "latents": ("B", *LATENT)}


def test_files_are_opset_18_valid_and_hold_nothing_of_this_machine(traced: dict[str, tuple[Source, Path]]) -> None:
    assert b"tests/models/tiny.py:" in traced["step"][1].read_bytes()  # lines of code, until a graph is complete
    for _, path in traced.values():
        model = onnx.load(path, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
        onnx.checker.check_model(str(path), full_check=True)
        complete = path.with_name(f"complete-{path.name}")
        shutil.copy(path, complete)
        forget(complete)
        assert b".py" not in complete.read_bytes()


def test_nodes_say_which_submodule_they_are_in(traced: dict[str, tuple[Source, Path]]) -> None:
    model = onnx.load(traced["step"][1], load_external_data=False)
    scopes = {n.op_type: {p.key: p.value for p in n.metadata_props}.get(SCOPES, "") for n in model.graph.node}
    assert "'denoiser'" in scopes["Softmax"] and "'denoiser'" in scopes["Split"]


def test_an_attention_is_two_products_and_one_transposed_key(traced: dict[str, tuple[Source, Path]]) -> None:
    model = onnx.load(traced["step"][1], load_external_data=False)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Softmax") == 4  # two blocks, two attentions each
    assert operators.count("Shape") <= 4  # of the batch, not of every key


def test_large_weights_lie_beside_the_graph(traced: dict[str, tuple[Source, Path]]) -> None:
    _, path = traced["step"]
    weights = sum(p.numel() * 4 for p in tiny_model().denoiser.parameters())
    assert path.with_name("step.onnx.data").stat().st_size > 0.8 * weights > path.stat().st_size


def test_tracing_again_gives_the_same_bytes_and_prints_nothing(
    traced: dict[str, tuple[Source, Path]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
) -> None:
    trace(decode_source(tiny_model()), tmp_path / "decode.onnx")
    for suffix in ("", ".data"):
        first = traced["decode"][1].with_name(f"decode.onnx{suffix}")
        assert (tmp_path / f"decode.onnx{suffix}").read_bytes() == first.read_bytes()
    assert capfd.readouterr() == ("", "")
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert [str(w.message) for w in recwarn] == []


def test_the_step_is_the_table_row() -> None:
    """Against runtime/table.py's definition, written out with einsum in float64."""

    class Known(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            return x * label[:, None] + timestep[:, None]

    torch.manual_seed(0)
    state, noise = torch.randn(K, 3, 5), torch.randn(3, 5)
    transition, prediction = torch.randn(K, K + 3), torch.randn(2)
    guidance, label = torch.tensor([-1.5, 2.5]), torch.randn(2, 3)
    known, keep, next_level = torch.randn(2, 3, 5), (torch.rand(3, 5) < 0.4).float(), torch.tensor([0.8, 0.6])
    for limit in (0.5, float("inf")):
        next_state, x0 = StepGraph(Known())(
            state,
            transition,
            prediction,
            torch.tensor([limit]),
            torch.tensor([0.7]),
            torch.tensor([11.0]),
            guidance,
            noise,
            known,
            keep,
            next_level,
            label,
        )
        x = state[0].double()
        out = torch.einsum("g,gbn->bn", guidance.double(), 0.7 * x * label[:, :, None].double() + 11)
        want_x0 = (prediction[0] * x + prediction[1] * out).clamp(-limit, limit)
        columns = torch.cat([state.double(), want_x0[None], out[None], noise[None].double()])
        want = torch.einsum("kc,cbn->kbn", transition.double(), columns)
        want = torch.where(keep > 0, torch.einsum("l,lbn->bn", next_level.double(), known.double()), want)
        want_x0 = torch.where(keep > 0, known[0], want_x0)
        assert relative_rms(x0.numpy(), want_x0.numpy()) < LIMITS["step arithmetic"]
        assert relative_rms(next_state.numpy(), want.numpy()) < LIMITS["step arithmetic"]


def test_branches_are_rows_branch_by_branch() -> None:
    class Label(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            return label[:, None].expand_as(x)

    label = torch.tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])  # (G, B)
    zeros, keep_output = torch.zeros(K, 3, 1), torch.zeros(K, K + 3)
    keep_output[0, K + 1] = 1
    one = torch.ones(1)
    next_state, _ = StepGraph(Label())(
        zeros, keep_output, torch.zeros(2), one, one, one, torch.tensor([0.0, 1.0]), zeros[0], zeros[:2], zeros[0],
        torch.zeros(2), label,
    )  # fmt: skip
    assert next_state[0, :, 0].tolist() == [10, 20, 30]


def test_attention_is_translated_exactly(tmp_path: Path) -> None:
    class Attentions(nn.Module):
        def forward(self, q: Tensor, k: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
            attention = F.scaled_dot_product_attention
            return (
                attention(q, k, k),
                attention(q, k, k, scale=0.3),
                attention(q, k, k, attn_mask=mask),
                attention(q, k, k, attn_mask=mask > 0),
                attention(q, k, k, is_causal=True),
                attention(q, k[:, :2], k[:, :2], enable_gqa=True),
            )

    torch.manual_seed(0)
    inputs = {"q": torch.randn(3, 4, 5, 8), "k": torch.randn(3, 4, 7, 8), "mask": torch.randn(3, 1, 5, 7)}
    inputs["mask"][..., 0] = 1  # every query sees something
    outputs = ("plain", "scaled", "masked", "hidden", "causal", "grouped")
    source = Source("step", Attentions(), inputs, dict.fromkeys(inputs, ("B",)), outputs)
    trace(source, tmp_path / "attention.onnx")
    for given in (inputs, {name: x[:1] for name, x in inputs.items()}):
        answers = zip(outputs, play(tmp_path / "attention.onnx", given), call(source, given), strict=True)
        errors = {name: relative_rms(got, want) for name, got, want in answers}
        assert max(errors.values()) < LIMITS["traced graph"], errors


@pytest.mark.parametrize(("form", "fused"), [("none", "BiasGelu"), ("tanh", "FastGelu")])
def test_a_gelu_is_translated_so_that_onnx_runtime_knows_it(tmp_path: Path, form: str, fused: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(form), nn.Linear(16, 8))
    source = Source("step", module, {"input": 3 * torch.randn(3, 4, 8)}, {"input": ("B",)}, ("out",))
    trace(source, tmp_path / "gelu.onnx")
    (got,), (want,) = play(tmp_path / "gelu.onnx", source.inputs), call(source, source.inputs)
    assert relative_rms(got, want) < LIMITS["traced graph"]
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(tmp_path / "gelu.onnx", options, providers=["CPUExecutionProvider"])
    assert fused in [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]


def test_a_transformer_encoder_layer_is_traced(tmp_path: Path) -> None:
    """In evaluation mode torch runs it as one fused operator, which ONNX doesn't have."""
    torch.manual_seed(0)
    source = Source(
        "condition",
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(),
        {"src": torch.randn(3, 4, 16)},
        {"src": ("R",)},
        ("out",),
    )
    trace(source, tmp_path / "layer.onnx")
    assert (
        relative_rms(play(tmp_path / "layer.onnx", source.inputs)[0], call(source, source.inputs)[0])
        < LIMITS["traced graph"]
    )


def test_a_module_that_cannot_be_traced_names_graph_and_reason(tmp_path: Path) -> None:
    class Peeks(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x if x.sum().item() > 0 else -x,)

    source = Source("decode", Peeks(), {"latents": torch.ones(3, 2)}, {"latents": ("B",)}, ("media",))
    line = r"\S*test_graphs\.py:\d+: return \(x if x\.sum"
    with pytest.raises(MmgenError, match=rf"graph decode can't be traced by torch\.export at {line}.*[Gg]uard"):
        trace(source, tmp_path / "decode.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_the_module_fixes_is_an_error(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x.reshape(3, 2, 1) * 2,)

    source = Source("decode", Fixed(), {"latents": torch.ones(3, 2)}, {"latents": ("B",)}, ("media",))
    with pytest.raises(MmgenError, match="graph decode"):
        trace(source, tmp_path / "decode.onnx")


def test_an_output_whose_size_depends_on_the_batch_is_an_error(tmp_path: Path) -> None:
    class Doubles(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (torch.cat([x, x]),)

    source = Source("decode", Doubles(), {"latents": torch.ones(3, 2)}, {"latents": ("B",)}, ("media",))
    with pytest.raises(MmgenError, match=r"graph decode: output media has an axis of unknown size, got 2\*B"):
        trace(source, tmp_path / "decode.onnx")


def test_media_that_are_numbers_stay_numbers() -> None:
    model = tiny_model(decoder=nn.Flatten(), quantiser=None, media=Media("array", (256,), "float32"))
    source = decode_source(model)
    latents = torch.randn(2, *LATENT)
    (media,) = call(source, {"latents": latents})
    assert np.array_equal(media, latents.flatten(1).numpy())


def guided(out: Tensor, guidance: list[float], rescale: float = 0.0, channels: int | None = None) -> Tensor:
    """Guide outputs (G, B, *L) of the branches as a step does."""
    return StepGraph(nn.Identity(), channels).guide(out, torch.tensor(guidance), torch.tensor([rescale]))


def test_guidance_is_rescaled_as_diffusers_does() -> None:
    torch.manual_seed(0)
    out = torch.randn(2, 3, *LATENT) * torch.tensor([1.0, 5.0, 0.1])[:, None, None, None] + 0.3
    plain = guided(out, [4.0, -3.0])
    assert torch.equal(plain, 4 * out[0] + -3 * out[1])
    for share in (0.3, 0.7, 1.0):
        wanted = rescale_noise_cfg(plain, out[0], guidance_rescale=share)
        got = guided(out, [4.0, -3.0], share)
        assert relative_rms(got.numpy(), wanted.numpy()) < LIMITS["step arithmetic"]


def test_an_output_without_spread_is_left_alone() -> None:
    """A sample that is the same everywhere: 0 / 0 would be NaN, with rescaling off too."""
    for share in (0.0, 1.0):
        assert torch.isfinite(guided(torch.zeros(2, 1, *LATENT), [4.0, -3.0], share)).all()
    assert torch.equal(guided(torch.ones(2, 1, *LATENT), [4.0, -3.0]), torch.ones(1, *LATENT))


def test_channels_that_are_not_guided_are_those_of_what_is_asked() -> None:
    """As DiT's forward_with_cfg: eps, rest = out[:, :3], out[:, 3:]; eps = uncond + w (cond - uncond)."""
    torch.manual_seed(0)
    cond, uncond = torch.randn(2, 3, *LATENT)
    wanted = torch.cat([uncond[:, :3] + 4 * (cond[:, :3] - uncond[:, :3]), cond[:, 3:]], 1)
    got = guided(torch.stack([cond, uncond]), [4.0, -3.0], channels=3)
    assert relative_rms(got.numpy(), wanted.numpy()) < LIMITS["step arithmetic"]
    assert torch.equal(got[:, 3:], cond[:, 3:])
    for everything in (LATENT[0], None):
        assert torch.equal(guided(torch.stack([cond, uncond]), [4.0, -3.0], channels=everything), 4 * cond - 3 * uncond)


def test_rescaling_is_in_the_graph_where_there_is_guidance_and_it_is_wanted() -> None:
    without_null = (Condition("label", "class", count=10),)  # which a negative condition can stand in for
    assert "guidance_rescale" in step_source(tiny_model(), []).inputs
    assert "guidance_rescale" in step_source(tiny_model(conditions=without_null), []).inputs
    assert "guidance_rescale" not in step_source(tiny_model(guidance_rescale=False), []).inputs
    assert "guidance_rescale" not in step_source(tiny_model(conditions=()), []).inputs


def test_guided_channels_are_in_the_graph(tmp_path: Path) -> None:
    source = sources(tiny_model(guided_channels=3))["step"]
    trace(source, tmp_path / "step.onnx")
    inputs = random_inputs(source, {"B": 2, "G": 3})
    inputs["guidance"], inputs["guidance_rescale"] = torch.tensor([3.0, -4.0, 2.0]), torch.tensor([0.5])
    answers = list(zip(play(tmp_path / "step.onnx", inputs), call(source, inputs), strict=True))
    assert max(relative_rms(got, want) for got, want in answers) < LIMITS["traced graph"]
