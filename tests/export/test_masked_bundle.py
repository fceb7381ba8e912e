"""Bundles of a masked process, from export to pictures, as a user meets them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting import Counting
from tiny_tokens import CLASSES, CODES, GRID, PROCESS, tiny_token_model

from mmgen.engines.builder import build
from mmgen.engines.targets import parse
from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.runtime import load
from mmgen.runtime.backends.openvino.backend import find_core
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.cli.describe import text
from mmgen.runtime.generator import Generator
from mmgen.runtime.loop.masked_plan import MaskedPlan
from mmgen.runtime.request.tokens import uniforms
from mmgen.runtime.solvers.masked import table
from mmgen.runtime.solvers.masked_reference import run
from mmgen.runtime.storage import limits
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.golden import read_golden
from mmgen.runtime.storage.schema import GOLDEN, Defaults
from mmgen.runtime.verify import measure, repeat, verify

PLACES = GRID[0] * GRID[1]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_token_model()


@pytest.fixture(scope="module")
def folder(exported_once: Callable[..., Path]) -> Path:
    return exported_once(tiny_token_model)


@pytest.fixture
def generator(folder: Path, cpu: str):
    with load(folder, cpu, threads=1) as opened:
        yield opened


def reference(
    model: Model, labels: list[int], seed: int, steps: int, weight: float, solver: str, **options: Any
) -> np.ndarray:
    """Tokens (B, 6, 6) of the numpy definition around the denoiser in torch."""
    rows = table(solver, PROCESS, PLACES, steps, options=options)
    drawn = uniforms(seed, (len(labels), *GRID), len(rows)).values()
    with torch.no_grad():
        context = [model.condition(torch.tensor(asked))[0] for asked in ([CLASSES] * len(labels), labels)]

    @torch.no_grad()
    def denoiser(tokens: np.ndarray) -> np.ndarray:
        seen = torch.from_numpy(tokens).reshape(-1, *GRID)
        null, asked = (model.denoiser(seen, c).flatten(2).transpose(1, 2).numpy() for c in context)
        return (1 - np.float32(weight)) * null + np.float32(weight) * asked

    noises = np.stack([d.reshape(len(labels), 2, PLACES).swapaxes(0, 1) for d in drawn])
    *_, (tokens, _) = run(PROCESS, rows, denoiser, np.full((len(labels), PLACES), PROCESS.mask_id), noises)
    return tokens.reshape(-1, *GRID)


@pytest.mark.parametrize(("solver", "options"), [
    ("maskgit", {}),
    ("maskgit", {"compounding": True, "sampling_temperature": 0.0}),
    ("amused", {}),
    ("mdlm", {}),
    ("llada", {}),
    ("llada", {"blocks": 3, "order": "random", "sampling_temperature": 0.5, "top_k": 7}),
])  # fmt: skip
def test_generated_tokens_are_the_definitions(generator: Generator, model: Model, solver: str, options: dict) -> None:
    result = generator.generate(label=[3, 7], seed=5, steps=6, guidance=2.5, solver=solver, options=options)
    np.testing.assert_array_equal(result.latents, reference(model, [3, 7], 5, 6, 2.5, solver, **options))
    np.testing.assert_array_equal(result.codes, result.latents)
    assert result.media.shape == (2, 12, 12, 3) and result.media.dtype == np.uint8
    assert result.complete and result.evaluations == (7 if solver == "mdlm" else 6)


def test_streaming_shows_fewer_masks_each_time_and_ends_with_the_same(generator: Generator) -> None:
    result = generator.generate(label=1, seed=2)
    masked = []
    for progress in generator.stream(label=1, seed=2):
        masked.append(int((progress.latents() == PROCESS.mask_id).sum()))
        assert progress.preview().shape == (1, 12, 12, 3)
    assert masked == sorted(masked, reverse=True) and masked[-1] == 0 and len(set(masked)) == 6
    np.testing.assert_array_equal(progress.latents(), result.latents)
    np.testing.assert_array_equal(progress.result().media, result.media)


def test_streams_side_by_side_keep_their_tokens_to_themselves(generator: Generator) -> None:
    """Also those that a row is made to begin from."""
    asked: dict[str, Any] = {"label": 1, "steps": 6}
    alone = [generator.generate(**asked, seed=seed).latents for seed in (2, 3)]
    one, other = (generator.stream(**asked, seed=seed) for seed in (2, 3))
    for ours, theirs in zip(one, other, strict=True):
        assert ours.resume and theirs.resume
        for progress in (ours, theirs):
            progress.resume(progress.latents())
        generator.generate(**asked, seed=4)
    np.testing.assert_array_equal(ours.latents(), alone[0])
    np.testing.assert_array_equal(theirs.latents(), alone[1])


def test_a_sample_of_a_seed_is_the_same_in_every_batch(generator: Generator) -> None:
    one, three = (generator.generate(label=4, seed=9, count=n).latents for n in (1, 3))
    np.testing.assert_array_equal(one[0], three[0])
    assert (three[0] != three[1]).any()
    assert (generator.generate(label=4, seed=10).latents != one).any()


def test_guidance_of_one_runs_one_branch(generator: Generator, model: Model) -> None:
    got = generator.generate(label=[2], seed=1, guidance=1.0, steps=4).latents
    np.testing.assert_array_equal(got, reference(model, [2], 1, 4, 1.0, "maskgit"))


def test_a_condition_that_is_the_same_is_not_computed_again(folder: Path) -> None:
    backend = Counting()
    with Generator(read_bundle(folder), backend) as generator, load(folder, "ort-cpu", threads=1) as fresh:
        for label, seed, calls in ((1, 0, 1), (1, 1, 0), (2, 1, 1), (2, 1, 0), (1, 0, 1)):
            result = generator.generate(label=label, seed=seed)
            assert backend.since() == ({"condition": 1} if calls else {})
            fresh.forget("condition", "timestep")
            np.testing.assert_array_equal(result.latents, fresh.generate(label=label, seed=seed).latents)


def test_warming_up_runs_the_loop_of_tokens(folder: Path) -> None:
    backend = Counting()
    with Generator(read_bundle(folder), backend) as opened:
        opened.warm_up(batch=2, steps=3)
        assert backend.calls["step"] == 3 and backend.calls["decode"] == 1


def test_codes_are_decoded_and_what_is_none_is_refused(generator: Generator) -> None:
    result = generator.generate(label=1, seed=2)
    media, codes = generator.decode(result.codes)
    np.testing.assert_array_equal(media, result.media)
    assert codes is None
    with pytest.raises(MmgenError, match=f"codes, got 0 to {PROCESS.mask_id}, wanted 0 to {CODES - 1}"):
        generator.decode(np.array([0] * 35 + [PROCESS.mask_id]).reshape(1, *GRID))
    with pytest.raises(MmgenError, match="codes, got float32"):
        generator.decode(np.zeros((1, *GRID), np.float32))


@pytest.mark.parametrize(("options", "message"), [
    ({"solver": "ddim"}, "solver for a masked process, got 'ddim'"),
    ({"steps": 40}, "steps of solver 'maskgit', got 40, wanted at most 36"),
    ({"options": {"eta": 1.0}}, "option 'eta' of solver 'maskgit', wanted 'temperature' or"),
    ({"sigmas": "karras"}, "sigmas is of latents"),
    ({"noise": np.zeros((1, *GRID), np.float32)}, "noise is of latents"),
    ({"guidance_interval": (0.1, 1.0)}, "guidance_interval is of latents"),
    ({"strength": 0.5}, "strength, got 0.5, wanted an image or latents to start from"),
    ({"guidance_rescale": 0.5}, "can't rescale guidance"),
])  # fmt: skip
def test_what_tokens_have_no_such_thing_for_is_said(generator: Generator, options: dict, message: str) -> None:
    with pytest.raises(MmgenError, match=message):
        generator.generate(label=1, **options)


def test_a_deadline_that_is_near_leaves_codes_in_every_place(generator: Generator) -> None:
    result = generator.generate(label=1, steps=30, deadline=1e-6)
    assert not result.complete and (result.codes < CODES).all() and result.media.shape == (1, 12, 12, 3)


@pytest.fixture(scope="module")
def half(exported_once: Callable[..., Path]) -> Path:
    return exported_once(tiny_token_model, "fp16")


def test_half_bundles_pass_their_receipts_and_verify_repeats_them(half: Path) -> None:
    bundle = read_bundle(half)
    assert bundle.precision.half_share["step"].weight_bytes > 0.9
    figures = {(r.level, r.graph, r.figure) for r in bundle.receipts}
    assert {(level, role, "share") for level in (1, 2) for role in ("step", "encode")} < figures
    assert (3, "loop", "share that differs") in figures
    again = verify(half, "ort-cpu", threads=1)
    assert any(r.figure == "share that differs" and r.limit is not None for r in again)


def test_rows_go_on_from_tokens_that_are_put_in(generator: Generator) -> None:
    request = {"label": 1, "seed": 2, "steps": 4}
    other = [progress.latents() for progress in generator.stream(**{**request, "label": 6})]
    made = []
    for progress in generator.stream(**request):
        made.append(progress.latents())
        if progress.evaluation == 2:
            progress.resume(other[1])
    unmasked = other[1] != PROCESS.mask_id
    np.testing.assert_array_equal(made[3][unmasked], other[1][unmasked])
    assert (made[3] != other[3]).any()  # what was open is filled with the other label

    for progress in generator.stream(**request):
        for tokens, message in ((other[1][0], r"tokens, got int64 \(6, 6\)"), (other[1] * 0 - 1, "tokens, got -1")):
            with pytest.raises(MmgenError, match=message):
                progress.resume(tokens)


def reads_an_older_row(patch: pytest.MonkeyPatch) -> None:
    """Every row begins from the tokens that the first one began from."""
    made = MaskedPlan.__init__

    def init(plan: MaskedPlan, *args: Any) -> None:
        made(plan, *args)
        before = [tokens.of(plan._block.host) for tokens in plan._tokens]
        kept = np.empty_like(before[0])

        def row(i: int, step: Any) -> None:
            if i == 0:
                kept[:] = before[0]
            before[i % 2][:] = kept
            step()

        plan.steps = [partial(row, i, step) for i, step in enumerate(plan.steps)]

    patch.setattr(MaskedPlan, "__init__", init)


def loses_its_tokens_between_rows(patch: pytest.MonkeyPatch) -> None:
    """Change tokens between rows: those that a row made are right, but the next one begins from others."""
    read = MaskedPlan.latents

    def latents(plan: MaskedPlan, row: int) -> np.ndarray:
        tokens = read(plan, row)
        plan._tokens[row % 2].of(plan._block.host)[:] = np.roll(tokens, 1, -1)
        return tokens

    patch.setattr(MaskedPlan, "latents", latents)


@pytest.mark.parametrize(("fault", "passes"), [
    (None, (True, True, True)),
    (reads_an_older_row, (False, True, False)),
    (loses_its_tokens_between_rows, (True, False, False)),
])  # fmt: skip
def test_a_loop_that_hands_on_wrong_tokens_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, passes: tuple[bool, ...]
) -> None:
    if fault:
        fault(monkeypatch)
    with load(folder, "ort-cpu", threads=1) as generator:
        receipts = [receipt for receipt in measure(generator, read_golden(folder / GOLDEN)) if receipt.level == 3]
    assert tuple(receipt.passed for receipt in receipts) == passes


def test_a_golden_whose_request_makes_other_samples_is_refused(folder: Path) -> None:
    golden = read_golden(folder / GOLDEN)
    fewer = dataclasses.replace(golden, conditions={name: value[:1] for name, value in golden.conditions.items()})
    with load(folder, "ort-cpu", threads=1) as generator, pytest.raises(MmgenError) as caught:
        measure(generator, fewer)
    assert f"what its request makes, got (1, {golden.other.shape[1]}" in str(caught.value)


def test_in_bfloat16_a_step_that_makes_codes_stays_one_graph(half: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if "BF16" not in find_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no instructions for bfloat16")
    torchs, own, *_ = repeat(read_bundle(half), "openvino-bf16", threads=1)
    assert own.tensor.endswith("given their own") and own.passed
    assert torchs.tensor.endswith("given torch's") and torchs.measured < torchs.limit


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (2, False)])
def test_where_seeds_do_not_matter_a_few_tokens_may_differ(
    generator: Generator, folder: Path, wrong: int, passes: bool
) -> None:
    golden = read_golden(folder / GOLDEN)
    trajectory = golden.trajectory.copy()
    trajectory[-1].flat[:wrong] = (trajectory[-1].flat[:wrong] + 1) % CODES  # 2 of 72 are too many in float32
    receipt, *_ = measure(generator, dataclasses.replace(golden, trajectory=trajectory, other=trajectory[-1]))
    assert (receipt.level, receipt.limit, receipt.passed) == (3, limits.TOKENS_DIFFERING["fp32"], passes)


def test_the_manifest_says_that_tokens_come_out(folder: Path) -> None:
    bundle = read_bundle(folder)
    assert bundle.process == PROCESS
    assert [(s.name, s.dtype) for s in bundle.graphs["decode"].inputs] == [("codes", "int64")]
    assert "masked, 48 codes, mask 50" in text(bundle)


def test_engines_are_built_for_all_of_its_graphs(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    _, made, _ = build(read_bundle(folder), parse(["sm86"]))
    assert set(made.engines) == {"condition", "step", "decode", "encode"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"defaults": Defaults("ddim", 4)}, "solver for a masked process, got 'ddim'"),
    ({"latent_shape": (5, 5)}, "denoiser fails"),
    ({"guided_channels": 2}, "guided_channels, got 2"),
    ({"encoder": torch.nn.PixelUnshuffle(2)}, r"encoder: what it returns, got torch.float32 \(1, 12, 6, 6\), wanted"),
    ({"quantiser": torch.nn.Identity()}, "a masked process with a quantiser"),
])  # fmt: skip
def test_a_model_that_is_not_what_it_says_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=message):
        export(tiny_token_model(**changes), tmp_path / "wrong.mmgen", policy="fp32")
    assert not (tmp_path / "wrong.mmgen").exists()
