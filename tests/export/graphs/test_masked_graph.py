"""The masked step as a graph: token for token the numpy definition, and NVIDIA's compiler takes it."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_tokens import CODES, GRID, PROCESS, TokenDenoiser, tiny_token_model

from mmgen.engines.compile import Job
from mmgen.engines.worker import compile_apart
from mmgen.export.base.dtypes import load
from mmgen.export.base.lint import lint
from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import EXAMPLE_B, EXAMPLE_G
from mmgen.export.graphs.masked import codes_decode_source, masked_step_source
from mmgen.export.half.emulate import emulated
from mmgen.export.half.precision import to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.export.tracing.trace import describe, trace
from mmgen.runtime.loop.masked_plan import ROWS
from mmgen.runtime.solvers.masked import SAMPLERS, MaskedTable, table
from mmgen.runtime.solvers.masked_reference import run, step
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Axis

POSITIONS = GRID[0] * GRID[1]
TIMED = dataclasses.replace(PROCESS, train_timesteps=8)  # for samplers that need it
Arrays = dict[str, np.ndarray]


def traced_step(model: Model, folder: Path) -> Path:
    path = folder / "step.onnx"
    context = torch.randn(EXAMPLE_B * EXAMPLE_G, 1, 32)
    trace(masked_step_source(model, [("context", context)]), path)
    return path


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_token_model()


@pytest.fixture(scope="module")
def graph(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return traced_step(model, tmp_path_factory.mktemp("masked"))


def inputs(
    rows: MaskedTable, row: int, tokens: np.ndarray, uniforms: np.ndarray, context: np.ndarray, grid=GRID
) -> Arrays:
    """Of one row; tokens (B, positions), uniforms (2, B, positions)."""
    weights = np.array([-2, 3], np.float32) if len(context) == 2 else np.ones(1, np.float32)
    choice, order = uniforms.reshape(2, len(tokens), *grid)
    numbers = {name: getattr(rows, name)[row].reshape(shape) for name, shape in ROWS.items()}
    return {
        names.TOKENS: tokens.reshape(-1, *grid), **numbers, names.GUIDANCE: weights, names.CHOICE: choice,
        names.ORDER: order, "context": context,
    }  # fmt: skip


def guided(model: Model, context: np.ndarray):
    """Wrap the denoiser in numpy: tokens (B, positions) to logits (B, positions, codes)."""

    @torch.no_grad()
    def denoiser(tokens: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(tokens).reshape(-1, *GRID)
        branches = [model.denoiser(seen, torch.from_numpy(c)) for c in context]
        out = branches[0] if len(branches) == 1 else -2 * branches[0] + 3 * branches[1]
        return out.flatten(2).transpose(1, 2).numpy()

    return denoiser


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("batch", "branches"), [(1, 1), (1, 2), (4, 2)])
def test_whole_runs_equal_the_definition_token_for_token(graph, model, sampler, batch, branches):
    rng = np.random.default_rng(0)
    context = rng.normal(size=(branches, batch, 1, 32)).astype(np.float32)
    rows = table(sampler, TIMED, POSITIONS, 8)
    uniforms = rng.random((len(rows), 2, batch, POSITIONS), np.float32)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    tokens = np.full((batch, POSITIONS), PROCESS.mask_id)
    wanted = run(PROCESS, rows, guided(model, context), tokens, uniforms)
    for row, (want, want_codes) in enumerate(wanted):
        got, codes = session.run(None, inputs(rows, row, tokens, uniforms[row], context))
        np.testing.assert_array_equal(got.reshape(batch, -1), want)
        np.testing.assert_array_equal(codes.reshape(batch, -1), want_codes)
        tokens = want
    assert (tokens < CODES).all()


def test_only_what_every_device_can_build_is_in_it(graph):
    lint(graph)
    operations = {node.op_type for node in load(graph).graph}
    assert "TopK" in operations and not operations & {"CumSum", "Multinomial", "RandomUniform", "NonZero", "Loop"}


def test_inputs_and_outputs_have_their_names_types_and_axes(graph):
    described = describe(graph, graph.parent)
    specs = {s.name: (s.dtype, s.shape) for s in (*described.inputs, *described.outputs)}
    positions = ("B", *GRID)
    assert specs == {
        "tokens": ("int64", positions), **{name: ("float32", shape) for name, shape in ROWS.items()},
        "guidance": ("float32", ("G",)), "choice": ("float32", positions), "order": ("float32", positions),
        "context": ("float32", ("G", "B", 1, 32)), "next_tokens": ("int64", positions), "codes": ("int64", positions),
    }  # fmt: skip


def half_graph(graph: Path, folder: Path):
    rng = np.random.default_rng(3)
    rows = table("maskgit", PROCESS, POSITIONS, 4)
    context = rng.normal(size=(2, 2, 1, 32)).astype(np.float32)
    feeds = []
    for row in range(4):
        masked = rng.random((2, POSITIONS)) < 1 - row / 4
        tokens = np.where(masked, PROCESS.mask_id, rng.integers(0, CODES, (2, POSITIONS)))
        feeds.append(inputs(rows, row, tokens, rng.random((2, 2, POSITIONS), np.float32), context))
    target = folder / "half.onnx"
    halved = to_half(graph, target, measure_ranges(graph, feeds), role="step")
    return target, halved, feeds


def test_half_precision_ends_at_the_logits(graph, model, tmp_path):
    """The sampler's arithmetic is float32: given the half graph's own logits, the definition makes its tokens."""
    path, halved, feeds = half_graph(graph, tmp_path)
    lint(path)
    assert halved.share.weight_bytes > 0.9
    assert any(island.reason == "solver arithmetic around the denoiser" for island in halved.islands)
    half = {v.name for node in load(path).graph for v in node.outputs if v.dtype == onnx.TensorProto.FLOAT16}
    after = {"TopK", "Exp", "Log", "LessOrEqual", "GatherElements"}
    for node in load(path).graph:
        if node.op_type in after:
            assert not half & {v.name for v in (*node.inputs, *node.outputs) if v is not None}, node.name
    single = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    agree = []
    with emulated(path) as rounded:
        session = onnxruntime.InferenceSession(rounded, providers=["CPUExecutionProvider"])
        for feed in feeds:
            both = zip(session.run(None, feed), single.run(None, feed), strict=True)
            agree.append([(a == b).mean() for a, b in both])
    assert np.mean(agree) > 0.97  # rounded logits move the limits between codes


@pytest.mark.parametrize("half", [False, True])
def test_nvidias_compiler_takes_it(graph, tmp_path, half):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    path = half_graph(graph, tmp_path)[0] if half else graph
    described = describe(path, path.parent)
    axes = {"B": Axis(1, 1, 8), "G": Axis(1, 2, 2)}
    job = Job(
        "step", "tensorrt-rtx", ("sm86",), str(path), described.inputs, described.outputs, (axes,),
        str(tmp_path / "step.engine"), half_operations=0.1 if half else 0.0,
    )  # fmt: skip
    report = compile_apart(job, lambda fraction: None, expected=1 << 30)
    assert (tmp_path / "step.engine").stat().st_size > 0
    assert report.float_layers > 0 and (report.half_layers > 0) == half


def test_more_places_than_tensorrt_sorts_and_fewer_candidates_than_codes(tmp_path):
    """On 64 x 64 positions, as Meissonic's: at each 64 of 512 codes are sorted."""
    process = Masked(codes=512, mask_id=520, candidates=64)
    grid = (64, 64)
    torch.manual_seed(0)
    denoiser = TokenDenoiser(grid, process).eval()
    denoiser.block = Nothing()  # attention over 4096 positions is not what this is about
    model = tiny_token_model(process=process, latent_shape=grid, denoiser=denoiser)
    path = traced_step(model, tmp_path)
    lint(path)
    rng = np.random.default_rng(0)
    rows = table("maskgit", process, 4096, 8)
    tokens = np.where(rng.random((1, 4096)) < 0.7, process.mask_id, rng.integers(0, 512, (1, 4096)))
    uniforms, context = rng.random((2, 1, 4096), np.float32), np.zeros((1, 1, 1, 32), np.float32)
    feed = inputs(rows, 5, tokens, uniforms, context, grid)
    got, codes = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)
    with torch.no_grad():
        logits = denoiser(torch.from_numpy(tokens).reshape(1, *grid), torch.from_numpy(context[0]))
    want, want_codes = step(process, rows, 5, tokens, logits.flatten(2).transpose(1, 2).numpy(), *uniforms)
    assert (got.reshape(1, -1) == want).mean() > 0.999 and (codes.reshape(1, -1) == want_codes).mean() > 0.999
    assert (got == process.mask_id).sum() == (want == process.mask_id).sum() == rows.masked[5]


class Nothing(torch.nn.Module):
    def forward(self, x: torch.Tensor, time: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return x + time[:, None]


def test_codes_become_media(model, tmp_path):
    source = codes_decode_source(model)
    trace(source, tmp_path / "decode.onnx")
    lint(tmp_path / "decode.onnx")
    codes = np.random.default_rng(0).integers(0, CODES, (2, *GRID))
    (media,) = onnxruntime.InferenceSession(tmp_path / "decode.onnx").run(None, {"codes": codes})
    with torch.no_grad():
        wanted = source.module(torch.from_numpy(codes)).numpy()
    assert media.shape == (2, 12, 12, 3) and media.dtype == np.uint8
    assert np.abs(media.astype(int) - wanted).max() <= 1
