"""From a model to a bundle that has been validated, or to nothing at all."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from manifests import left_in
from tiny import CLASSES, Denoiser, tiny_model
from torch import Tensor, nn
from traced_once import remembering

from mmgen.engines.builder import build
from mmgen.engines.targets import parse
from mmgen.export import exporter
from mmgen.export.exporter import export
from mmgen.export.graphs.latent import Source
from mmgen.export.half.emulate import emulated
from mmgen.export.proof.receipts import against_torch
from mmgen.export.proof.torch_run import Sample
from mmgen.export.tracing.trace import trace
from mmgen.runtime import load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.process import Flow
from mmgen.runtime.storage.schema import Bundle, Condition, Defaults, Media


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export the tiny model in half precision."""
    return export(tiny_model(), tmp_path_factory.mktemp("exported") / "tiny.mmgen", policy="fp16")


def small_model(denoiser: nn.Module | None = None) -> object:
    """As few graphs as there can be, for exports that fail."""
    overrides = {} if denoiser is None else {"denoiser": denoiser}
    return tiny_model(
        quantiser=None, encoder=None, decoder=nn.Flatten(), media=Media("array", (256,), "float32"), **overrides
    )


def test_the_bundle_reads_back_as_it_was_returned(exported: Bundle) -> None:
    assert read_bundle(exported.folder) == exported
    assert exported.precision.policy == "fp16"
    roles = {"condition", "timestep", "step", "decode", "encode"}
    assert roles == set(exported.graphs) == set(exported.precision.half_share)
    assert {"mmgen", "onnx", "onnxscript", "python", "torch"} <= set(exported.provenance.versions)


def test_the_folder_holds_what_the_manifest_names_and_nothing_else(exported: Bundle) -> None:
    files = {p.relative_to(exported.folder).as_posix() for p in exported.folder.rglob("*") if p.is_file()}
    graphs = exported.graphs.values()
    assert files == {"bundle.json", "golden.npz", *(g.file for g in graphs), *(g.data for g in graphs if g.data)}
    assert left_in(exported.folder.parent) == ["tiny.mmgen"]


def test_every_level_has_its_receipts(exported: Bundle) -> None:
    graded = {(r.level, r.graph, r.figure) for r in exported.receipts if r.limit is not None}
    for level in (1, 2):
        assert {
            (level, "condition", "relative RMS"),
            (level, "step", "relative RMS"),
            (level, "encode", "relative RMS"),
        } <= graded
        assert {(level, "decode", "PSNR"), (level, "decode", "share")} <= graded
    assert {(3, "loop", "relative RMS"), (4, "decode", "PSNR"), (4, "decode", "share")} <= graded
    reported = {(r.level, r.graph, r.figure) for r in exported.receipts if r.limit is None}
    assert reported == {(4, "loop", "PSNR"), (4, "loop", "share")}
    assert all(receipt.passed and receipt.tensor for receipt in exported.receipts)


def test_half_errors_are_those_of_half(exported: Bundle) -> None:
    """A comparison that ran in float32 unnoticed would show float32's errors."""
    half = {r.graph: r.measured for r in exported.receipts if (r.level, r.figure) == (2, "relative RMS")}
    single = {r.graph: r.measured for r in exported.receipts if (r.level, r.figure) == (1, "relative RMS")}
    assert all(1e-4 < half[graph] < 5e-3 for graph in half), half
    assert all(single[graph] < 1e-6 for graph in single), single


def test_the_bundle_plays(exported: Bundle) -> None:
    with load(exported.folder) as generator:
        result = generator.generate(label=[1, 2, 3], hint=np.zeros((3, 3), np.float32), seed=5)
    assert result.media.shape == (3, 16, 16, 3) and result.media.dtype == np.uint8
    assert result.codes is not None and result.codes.shape == (3, 8, 8)


def test_float32_has_no_level_2_and_no_halves(tmp_path: Path) -> None:
    stages: list[tuple[str, float]] = []
    bundle = export(small_model(), tmp_path / "a.mmgen", policy="fp32", progress=lambda *stage: stages.append(stage))  # type: ignore[arg-type]
    assert {receipt.level for receipt in bundle.receipts} == {1, 3, 4}
    assert bundle.precision.half_share == {} and bundle.precision.islands == ()
    shares = [share for _, share in stages]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert "tracing step" in [stage for stage, _ in stages]


def test_a_model_without_conditions_and_with_noise_in_the_loop(tmp_path: Path) -> None:
    class Unconditional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
            return self.layer(x) + 1e-4 * timestep[:, None, None, None]

    model = tiny_model(
        denoiser=Unconditional(), condition=None, conditions=(), conditioning=(), quantiser=None, encoder=None,
        decoder=nn.Flatten(), media=Media("array", (256,), "float32"),
        defaults=Defaults("ddim", 4, solver_options={"eta": 1.0}),
    )  # fmt: skip
    bundle = export(model, tmp_path / "a.mmgen", policy="fp32")
    assert next(r for r in bundle.receipts if r.level == 3).measured < 1e-5


def test_a_denoiser_that_takes_the_conditions_themselves(tmp_path: Path) -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label, self.layer = nn.Embedding(CLASSES + 1, 4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor, timestep: Tensor, label: Tensor) -> Tensor:
            return self.layer(x) + self.label(label)[:, :, None, None]

    model = dataclasses.replace(
        small_model(Labelled()),  # type: ignore[type-var]
        conditions=(Condition("label", "class", null=CLASSES, count=CLASSES),), condition=None, conditioning=(),
    )  # fmt: skip
    bundle = export(model, tmp_path / "a.mmgen", policy="fp16", hoist=False)
    assert set(bundle.graphs) == {"step", "decode"}
    assert bundle.graphs["step"].inputs[-1].shape == ("G", "B")


# what must not become a bundle


def test_a_module_that_is_another_one_when_traced_is_caught(tmp_path: Path) -> None:
    class TwoFaced(nn.Module):
        def forward(self, latents: Tensor) -> tuple[Tensor]:
            return (latents * (1.001 if torch.compiler.is_exporting() else 1.0),)

    latents = np.random.default_rng(0).standard_normal((2, 5), np.float32)
    trace(
        Source("encode", TwoFaced(), {"media": torch.ones(3, 5)}, {"media": ("B",)}, ("latents",)),
        tmp_path / "encode.onnx",
    )
    with pytest.raises(
        MmgenError, match=r"receipt 1 .*encode, relative RMS of latents, got 0\.001, wanted at most 0\.0001"
    ):
        sample = Sample({"media": latents}, {"latents": latents})
        against_torch("encode", tmp_path / "encode.onnx", [sample], Flow())


def test_a_residual_stream_beyond_half_needs_islands(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loud(nn.Module):
        """Makes tokens as large as those of big transformers become; the norms behind make them small again."""

        def __init__(self, patches: nn.Module) -> None:
            super().__init__()
            self.patches = patches

        def forward(self, x: Tensor) -> Tensor:
            return 1e5 * self.patches(x)

    torch.manual_seed(0)
    denoiser = Denoiser(blocks=1)
    denoiser.patches = Loud(denoiser.patches)  # type: ignore[assignment]
    model = small_model(denoiser)
    monkeypatch.setattr(exporter, "trace", remembering(tmp_path_factory.mktemp("traces")))
    bundle = export(model, tmp_path / "a.mmgen", policy="fp16")  # type: ignore[arg-type]
    assert any(island.graph == "step" and "range" in island.reason for island in bundle.precision.islands)
    assert bundle.precision.half_share["step"].weight_bytes > 0.9
    if importlib.util.find_spec("tensorrt_rtx"):  # the islands stay islands in the engine
        _, made, _ = build(bundle, parse(["sm86"]))
        kept = {island.tensor for island in bundle.precision.islands if island.graph == "step"}
        assert set(made.engines["step"].report.islands) == kept
    with pytest.raises(
        MmgenError,
        match=r"receipt 2 \(half against float\) failed: step.* half precision overflows first in tensor (\S+): \d",
    ):
        export(model, tmp_path / "a.mmgen", policy="fp16", islands=False)  # type: ignore[arg-type]
    assert left_in(tmp_path) == ["a.mmgen"] and read_bundle(tmp_path / "a.mmgen") == bundle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denoiser": nn.Flatten()}, r"denoiser fails on \(float32 \(1, 4, 8, 8\), float32 \(1,\), float32 \(1, 2"),
        ({"decoder": nn.Conv2d(4, 3, 1)}, r"decoder: what it returns, got .*\(1, 3, 8, 8\), wanted .*\(1, 3, 16, 16\)"),
        ({"conditioning": ("a", "b")}, "condition: number of tensors, got 1, wanted a, b"),
        ({"quantiser": nn.Identity()}, "quantiser: what it returns"),
        ({"encoder": nn.Conv2d(3, 4, 1)}, "encoder: what it returns"),
        ({"conditions": (Condition("label", "text", null=""),)}, "condition 'label': length, wanted"),
        ({"conditions": (Condition("label", "class", count=3),) * 2}, "condition 'label' is defined twice"),
        ({"conditions": (Condition("a=b", "class", count=3),)}, "condition 'a=b': name, wanted letters"),
        ({"conditions": (Condition("label", "class", null=0.5, count=3),)}, "condition 'label': null, got 0.5"),
        ({"conditions": (Condition("hint", "array", np.ones(2), shape=(3,)),)}, "'hint': null, got float32 .2,., want"),
        ({"conditions": (Condition("seen", "array", 0.5, dtype="int64"),)}, "'seen': null, got float64 .., wanted a n"),
        ({"conditions": (), "condition": None, "conditioning": ()}, "defaults: guidance, got 2.0, wanted 1: the model"),
        ({"decoder": nn.Linear(2, 2, device="meta")}, "decoder of tiny: tensor 'weight' has no values .2 of 2 have"),
        ({"encoder": nn.LazyLinear(2)}, "encoder of tiny: tensor 'weight' has no values .*, got a lazy module"),
        ({"guided_channels": 5}, "guided_channels, got 5, wanted 1 to 4, or None for all"),
        ({"defaults": Defaults("flow-euler", 4)}, "flow-euler"),
    ],
)  # fmt: skip
def test_a_model_that_is_not_what_it_says(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=message):
        export(tiny_model(**change), tmp_path / "a.mmgen", policy="fp32")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("bad", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_a_broken_weight_is_named(bad: float, word: str, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.denoiser.blocks[1].out.weight[3, 4] = bad  # type: ignore[union-attr,index]
    with pytest.raises(MmgenError, match=rf"denoiser of tiny: tensor 'blocks\.1\.out\.weight', got {word}"):
        export(model, tmp_path / "a.mmgen", policy="fp32")
    assert left_in(tmp_path) == []


def test_half_weights_in_torch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=r"got torch\.float16 on cpu, wanted torch\.float32 on cpu; call"):
        export(tiny_model(denoiser=Denoiser().half()), tmp_path / "a.mmgen", policy="fp32")


# half precision on a CPU


def test_onnx_runtime_hides_overflow_and_the_emulation_does_not(tmp_path: Path) -> None:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array((np.eye(4) * s).astype(np.float16), n) for n, s in (("up", 300), ("down", 1 / 300))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "up"], ["big"]),
        helper.make_node("MatMul", ["big", "down"], ["small"]),
        helper.make_node("Cast", ["small"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")

    def run(path: Path, value: float) -> np.ndarray:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": np.full((4, 4), value, np.float32)})[0]

    assert np.isfinite(run(tmp_path / "g.onnx", 1000)).all()  # 300,000 in between
    with emulated(tmp_path / "g.onnx") as rounded:
        assert not np.isfinite(run(rounded, 1000)).any()
        half = np.float16(np.float16(np.float16(1.2345) * np.float16(300)) * np.float16(1 / 300))
        assert (run(rounded, 1.2345) == np.float32(half)).all()
    assert left_in(tmp_path) == ["g.onnx"]
