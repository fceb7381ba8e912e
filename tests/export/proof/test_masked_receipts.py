"""Receipts of a masked step: rounding passes however flat the logits are, and a fault fails however sharp they are."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_tokens
import torch
from onnx import numpy_helper
from tiny_tokens import WIDTH, TokenDenoiser, tiny_token_model
from traced_once import traced_once

from mmgen.export import exporter
from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.export.proof.masked_receipts import LOGITS, REACH, compare, tied, undecided
from mmgen.export.proof.torch_run import Sample
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.loop.masked_plan import ROWS
from mmgen.runtime.solvers.masked import table
from mmgen.runtime.solvers.masked_reference import step
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked
from mmgen.runtime.storage.schema import Receipt

CODES, POSITIONS = 512, 64
RANDOM = np.random.default_rng(0)


def receipts(truth: np.ndarray, logits: np.ndarray, tokens: np.ndarray | None = None) -> dict[str, Receipt]:
    """Of a step that answers with these logits (1, N, codes), and draws from them what the definition draws."""
    process = Masked(codes=CODES, mask_id=CODES)
    rows = table("maskgit", process, POSITIONS, 8)
    tokens = np.full((1, POSITIONS), CODES) if tokens is None else tokens
    choice, order = RANDOM.random((2, 1, POSITIONS), np.float32)
    inputs = {name: getattr(rows, name)[3].reshape(size) for name, size in ROWS.items()}
    inputs |= {names.TOKENS: tokens, names.CHOICE: choice, names.ORDER: order}
    made = step(process, rows, 3, tokens, logits, choice, order)
    got = {names.NEXT_TOKENS: made[0], names.CODES: made[1], LOGITS: logits}
    compared = compare(2, "fp16", process, got, Sample(inputs, {LOGITS: truth}))
    return {receipt.tensor: receipt for receipt in compared}


def spread_of(deviation: float) -> np.ndarray:
    return (deviation * RANDOM.standard_normal((1, POSITIONS, CODES))).astype(np.float32)


@pytest.mark.parametrize("deviation", [0.3, 2.0, 10.0], ids=["flat", "usual", "sharp"])
def test_rounding_passes_and_a_twentieth_too_much_does_not(deviation: float) -> None:
    truth = spread_of(deviation)
    assert all(r.passed for r in receipts(truth, truth.astype(np.float16).astype(np.float32)).values())
    wrong = receipts(truth, 1.05 * truth)
    assert not wrong[LOGITS].passed and wrong[LOGITS].measured == pytest.approx(0.05, rel=1e-3)


def test_what_changes_no_draw_changes_no_receipt() -> None:
    truth = spread_of(2.0)
    tokens = np.full((1, POSITIONS), CODES)
    tokens[:, ::2] = 7
    changed = truth + np.arange(POSITIONS, dtype=np.float32)[:, None]  # a constant of each place
    changed[:, ::2] = 0  # what is unmasked
    truth[..., :9] = -1e9  # codes that are never drawn
    changed[..., :9] = -np.inf
    made = receipts(truth, changed, tokens)
    assert all(r.passed for r in made.values()) and made[LOGITS].measured < 1e-5
    changed[0, 1::2, 9] = truth[0, 1::2].max(-1)  # but one that is
    assert not receipts(truth, changed, tokens)[LOGITS].passed


def test_codes_out_of_reach_do_not_hide_an_error_in_the_others() -> None:
    truth = spread_of(1.0)
    truth[..., 100:] -= 1e4
    assert (truth[..., 100:] < truth.max(-1, keepdims=True) - REACH).all()
    wrong = truth.copy()
    wrong[..., :100] *= 1.05
    assert receipts(truth, wrong)[LOGITS].measured > 0.04


def test_a_draw_that_is_not_the_definitions_fails_whatever_the_logits() -> None:
    truth = spread_of(2.0)
    made = receipts(truth, truth)
    assert all(r.measured == 1 for name, r in made.items() if name != LOGITS)
    process = Masked(codes=CODES, mask_id=CODES)
    rows = table("maskgit", process, POSITIONS, 8)
    inputs = {name: getattr(rows, name)[3].reshape(size) for name, size in ROWS.items()}
    inputs |= {names.TOKENS: np.full((1, POSITIONS), CODES)}
    choice, order = RANDOM.random((2, 1, POSITIONS), np.float32)
    late = step(process, rows, 3, inputs[names.TOKENS], truth, (choice + 0.01) % 1, order)
    got = {names.NEXT_TOKENS: late[0], names.CODES: late[1], LOGITS: truth}
    sample = Sample(inputs | {names.CHOICE: choice, names.ORDER: order}, {LOGITS: truth})
    assert not all(r.passed for r in compare(2, "fp16", process, got, sample))


# Whole exports


class Flat(TokenDenoiser):
    """All codes about as likely."""

    def __init__(self) -> None:
        super().__init__(spread=0.05)


def test_a_model_whose_codes_are_all_as_likely_is_exported(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = tiny_token_model(denoiser=Flat().eval())
    bundle = export(model, tmp_path / "flat.mmgen", policy="fp16")
    (logits,) = (r for r in bundle.receipts if r.level == 2 and r.tensor.startswith(LOGITS))
    assert logits.passed and logits.figure == "relative RMS"


def zero_a_layer(weights: dict[tuple[int, ...], np.ndarray]) -> None:
    weights[WIDTH, 4 * WIDTH][:] = 0  # the first of two in the block


def scale_the_logits(weights: dict[tuple[int, ...], np.ndarray]) -> None:
    weights[WIDTH, tiny_tokens.CODES][:] *= 1.05


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    with traced_once(tmp_path_factory.mktemp("traces")):
        yield tiny_token_model()


@pytest.mark.parametrize("fault", [zero_a_layer, scale_the_logits])
def test_a_fault_of_the_half_graph_fails(
    fault: Callable[[dict[tuple[int, ...], np.ndarray]], None],
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    to_half = exporter.to_half

    def broken(source: Path, target: Path, *arguments: object, role: str, **options: object) -> object:
        if role == "step":
            graph = onnx.load(source)
            tensors = {tuple(tensor.dims): tensor for tensor in graph.graph.initializer}
            weights = {shape: numpy_helper.to_array(tensor).copy() for shape, tensor in tensors.items()}
            fault(weights)
            for shape, tensor in tensors.items():
                tensor.CopyFrom(numpy_helper.from_array(weights[shape], tensor.name))
            onnx.save(graph, source)
        return to_half(source, target, *arguments, role=role, **options)

    monkeypatch.setattr(exporter, "to_half", broken)
    with pytest.raises(MmgenError, match=r"receipt 2 .*step, relative RMS of logits, row") as caught:
        export(model, tmp_path / "wrong.mmgen", policy="fp16")
    assert float(caught.value.got) > 0.04


class TestTies:
    """Positions where rounding decides whether they are unmasked."""

    def test_are_those_at_the_limit_if_others_are_as_near(self) -> None:
        score = np.array([[-3.0, -2.0, -2.0 + 1e-6, -2.0, -1.0, -0.5]])
        assert tied(score, np.array([2]), 1e-5).tolist() == [[False, True, True, True, False, False]]
        assert not tied(score, np.array([1]), 1e-5).any(), "the lowest is far from the others"
        assert not tied(score, np.array([4]), 1e-5).any()

    def test_may_go_either_way_but_not_more_than_an_evaluation_unmasks(self) -> None:
        """Logits that are the same everywhere: which positions are unmasked says nothing, how many does."""
        same = np.repeat(spread_of(2.0)[:, :1], POSITIONS, 1)
        process, tokens = Masked(codes=CODES, mask_id=CODES), np.full((1, POSITIONS), CODES)
        rows = table("llada", process, POSITIONS, 8)
        inputs = {name: getattr(rows, name)[3].reshape(size) for name, size in ROWS.items()}
        inputs |= {names.TOKENS: tokens, names.CHOICE: np.zeros(tokens.shape), names.ORDER: np.full(tokens.shape, 0.5)}
        after, codes = step(process, rows, 3, tokens, same, inputs[names.CHOICE], inputs[names.ORDER])
        assert 0 < (after == CODES).sum() < POSITIONS

        def passes(made: np.ndarray) -> bool:
            got = {names.NEXT_TOKENS: made, names.CODES: codes, LOGITS: same}
            return all(r.passed for r in compare(1, "fp32", process, got, Sample(inputs, {LOGITS: same})))

        others = after[:, ::-1]
        assert passes(after) and passes(others) and (others != after).any()
        assert not passes(np.where(np.arange(POSITIONS) < 2, codes, after[:, ::-1])), "more are unmasked"
        assert not passes(np.where(others == CODES, CODES, (codes + 1) % CODES)), "with other codes"
        assert undecided(process, Sample(inputs, {LOGITS: same})).all()
        assert not undecided(process, Sample(inputs, {LOGITS: spread_of(3.0)})).all()

    def test_at_a_threshold_are_those_whose_probability_is_it(self) -> None:
        """Two codes are as likely, and the threshold is a half: any position may be unmasked, and one must be."""
        process, tokens = Masked(codes=CODES, mask_id=CODES), np.full((1, POSITIONS), CODES)
        rows = table("llada", process, POSITIONS, POSITIONS, options={"threshold": 0.5})
        inputs = {name: getattr(rows, name)[3].reshape(size) for name, size in ROWS.items()}
        inputs |= {names.TOKENS: tokens, names.CHOICE: np.zeros(tokens.shape), names.ORDER: np.full(tokens.shape, 0.5)}

        def passes(lead: float, unmasked: slice) -> bool:
            logits = np.full((1, POSITIONS, CODES), -100, np.float32)
            logits[..., 0], logits[..., 1] = lead * np.linspace(1, 2, POSITIONS), 0
            made = tokens.copy()
            made[:, unmasked] = 0
            got = {names.NEXT_TOKENS: made, names.CODES: np.zeros_like(tokens), LOGITS: logits}
            sample = Sample(inputs, {LOGITS: logits})
            assert undecided(process, sample).all() == (lead < 1e-3)
            return all(r.passed for r in compare(1, "fp32", process, got, sample))

        assert passes(0.0, slice(0, POSITIONS)) and passes(0.0, slice(0, POSITIONS // 2)) and passes(1e-6, slice(0, 4))
        assert passes(0.2, slice(0, POSITIONS)) and not passes(0.2, slice(0, POSITIONS // 2))
