"""A bundle that makes texts by unmasking, from export to strings: no decoder, an end, thresholds, and older bundles."""

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import masked_samplers as published
import numpy as np
import onnx
import pytest
import torch
from counting import Counting
from onnx import numpy_helper
from tiny_words import CLASSES, CODES, END, LENGTH, PROCESS, WORDS, tiny_word_model, tokenizer

from mmgen.engines.builder import build
from mmgen.engines.targets import parse
from mmgen.export.base.model import Model
from mmgen.export.exporter import export
from mmgen.runtime import Cancelled, Generator, MmgenError, load
from mmgen.runtime.cli.describe import text as described
from mmgen.runtime.request.tokens import uniforms
from mmgen.runtime.solvers.masked import table
from mmgen.runtime.solvers.masked_reference import ended, play
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.golden import golden_of
from mmgen.runtime.storage.hashes import CHECKSUM, checksum_of, sha256
from mmgen.runtime.storage.schema import Defaults, Media
from mmgen.runtime.verify import verify

LABELS, GUIDANCE = [1, 4], 1.5


@pytest.fixture(scope="module")
def folder(exported_once: Callable[..., Path]) -> Path:
    return exported_once(tiny_word_model)


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[Generator]:
    with load(folder, "ort-cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def denoiser() -> Callable[[np.ndarray], np.ndarray]:
    """Guided logits (B, N, codes) in torch, for both labels, or the first where there is one sample."""
    model = tiny_word_model()

    @torch.no_grad()
    def logits(tokens: np.ndarray) -> np.ndarray:
        labels = torch.tensor(LABELS[: len(tokens)])
        contexts = (model.condition(asked)[0] for asked in (torch.full_like(labels, CLASSES), labels))
        null, given = (model.denoiser(torch.from_numpy(tokens), context).transpose(1, 2) for context in contexts)
        return ((1 - GUIDANCE) * null + GUIDANCE * given).numpy()

    return logits


def drawn(seed: int, rows: int, batch: int = 2) -> np.ndarray:
    """The generator's uniform numbers (rows, 2, batch, positions)."""
    return np.stack([each.swapaxes(0, 1) for each in uniforms(seed, (batch, LENGTH), rows).values()])


def masks(batch: int = 2) -> np.ndarray:
    return np.full((batch, LENGTH), PROCESS.mask_id)


def words(tokens: np.ndarray) -> str:
    """One text (N,): what is before its end, but for special tokens and numbers without a word."""
    before = list(tokens[: list(tokens).index(END)] if END in tokens else tokens)
    return " ".join(WORDS[token] for token in before if 3 <= token < len(WORDS))


class TestTokens:
    @pytest.mark.parametrize(("steps", "options"), [
        (12, {"blocks": 3}), (12, {"blocks": 1}), (24, {"blocks": 4, "sampling_temperature": 0.8}),
        (6, {"blocks": 2, "order": "random"}),
    ])  # fmt: skip
    def test_are_the_papers(self, generator: Generator, denoiser: Any, steps: int, options: dict) -> None:
        *_, wanted = published.llada(
            denoiser, masks(), PROCESS.mask_id, drawn(5, steps), blocks=options["blocks"], steps=steps,
            temperature=options.get("sampling_temperature", 0.0), random=options.get("order") == "random",
        )  # fmt: skip
        result = generator.generate(label=LABELS, seed=5, steps=steps, options=options)
        np.testing.assert_array_equal(result.latents, ended(wanted, END))
        np.testing.assert_array_equal(result.media, result.latents)
        np.testing.assert_array_equal(result.codes, result.latents)
        assert result.texts == tuple(map(words, wanted)) and result.media.dtype == np.int64

    @pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3])
    @pytest.mark.parametrize("blocks", [1, 3])
    def test_by_a_threshold_are_fast_dllms(
        self, generator: Generator, denoiser: Any, threshold: float, blocks: int
    ) -> None:
        rows = published.fast_dllm(
            denoiser, masks(1), PROCESS.mask_id, drawn(5, LENGTH, 1), blocks=blocks, threshold=threshold
        )
        for ours, (row, tokens) in zip(  # which goes on behind the end
            generator.stream(
                label=LABELS[0], seed=5, steps=LENGTH, options={"blocks": blocks, "threshold": threshold}
            ), rows, strict=False,
        ):  # fmt: skip
            assert ours.evaluation == row + 1
            np.testing.assert_array_equal(ours.latents(), tokens)
        assert ours.last

    @pytest.mark.parametrize("options", [
        {"solver": "maskgit", "options": {"blocks": 2, "first": 5}}, {"solver": "maskgit"}, {"solver": "mdlm"},
        {"options": {"blocks": 2, "threshold": 0.1, "sampling_temperature": 1.0}}, {"options": {"threshold": 0.05}},
    ])  # fmt: skip
    def test_are_the_definitions_row_by_row(self, generator: Generator, denoiser: Any, options: dict) -> None:
        given = {} if options.get("solver") else generator.bundle.defaults.solver_options
        rows = table(options.get("solver", "llada"), PROCESS, LENGTH, 12, options=given | options.get("options", {}))
        wanted = list(play(PROCESS, rows, denoiser, masks(), drawn(6, len(rows)), END))
        made = list(generator.stream(label=LABELS, seed=6, steps=12, **options))
        assert [progress.evaluation for progress in made] == [row + 1 for row, *_ in wanted]
        assert [progress.last for progress in made] == [False] * (len(made) - 1) + [True]
        streamed, result = made[-1].result(), generator.generate(label=LABELS, seed=6, steps=12, **options)
        np.testing.assert_array_equal(result.latents, ended(wanted[-1][1], END))
        np.testing.assert_array_equal(streamed.latents, result.latents)
        for each in (result, streamed):
            assert each.complete and (each.evaluations, each.evaluations_run) == (len(rows), len(wanted))
            assert each.ended_early == (len(wanted) < len(rows)) and each.texts == result.texts

    def test_of_a_sample_are_the_same_in_every_batch(self, generator: Generator) -> None:
        asked: dict[str, Any] = {"label": 2, "seed": 9, "options": {"sampling_temperature": 1.0}}
        one, four = (generator.generate(**asked, count=count) for count in (1, 4))
        np.testing.assert_array_equal(four.latents[0], one.latents[0])
        assert len(set(four.texts or ())) == 4 and (one.text,) == one.texts

    def test_that_are_put_in_are_gone_on_from(self, generator: Generator) -> None:
        """The row after them runs, also if it has nothing to do."""
        stream = generator.stream(label=1, seed=3)
        first = next(stream)
        assert first.resume is not None
        first.resume(np.where(np.arange(LENGTH) < 9, 4, PROCESS.mask_id)[None])
        made = [first, *stream]
        assert [progress.evaluation for progress in made][:4] == [1, 2, 5, 6], "a block has eight positions, and 4 rows"
        assert (made[-1].result().media[0, :9] == 4).all()


class TestEnd:
    def test_spares_evaluations(self, folder: Path) -> None:
        backend = Counting()
        with Generator(read_bundle(folder), backend) as opened:
            result = opened.generate(label=LABELS, steps=12)
            assert backend.calls["step"] == result.evaluations_run < result.evaluations == 12
            assert result.complete and result.ended_early and len(result.timings.steps) == result.evaluations_run
            assert (result.media[:, -1] == END).all() and "decode" not in backend.calls

    def test_that_isnt_declared_spares_none(self, exported_once: Callable[..., Path]) -> None:
        backend = Counting()
        with Generator(read_bundle(exported_once(endless_word_model)), backend) as opened:
            result = opened.generate(label=LABELS, steps=12)
            assert backend.calls["step"] == 12 == result.evaluations_run and not result.ended_early
            assert [len(text.split()) for text in result.texts or ()] > [0, 0]

    def test_in_the_tokens_that_are_known_is_one(self, generator: Generator) -> None:
        """What follows it doesn't matter; one evaluation is made."""
        known, new = np.full((1, LENGTH), 5), np.arange(LENGTH) >= 12
        known[0, 4] = END
        result = generator.generate(label=1, latents=known, mask=new)
        assert result.evaluations_run == 1 and result.text == "word5 word5 word5 word5"

    def test_a_deadline_cuts_to_what_is_predicted(self, generator: Generator) -> None:
        result = generator.generate(label=LABELS, steps=24, deadline=1e-6)
        assert not result.complete and not result.ended_early and result.evaluations_run == 1
        assert (result.media < CODES).all() and result.texts == tuple(map(words, result.media))
        np.testing.assert_array_equal(result.media, ended(result.media, END))

    def test_a_deadline_leaves_each_block_a_step(self, generator: Generator) -> None:
        asked: dict[str, Any] = {"solver": "maskgit", "options": {"blocks": 2, "first": 5}, "steps": 12}
        assert generator.generate(label=1, **asked, deadline=1e-6).steps == 6
        known = np.zeros((1, LENGTH), np.int64)
        with pytest.raises(MmgenError, match="strength 1e-09 leaves none of 12 steps"):
            generator.generate(label=1, latents=known, strength=1e-9, options={"blocks": "many"})

    def test_a_request_is_cancelled_between_evaluations(self, generator: Generator) -> None:
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(Cancelled):
            generator.generate(label=1, cancel=cancel)
        stream = generator.stream(label=1)
        next(stream)
        stream.cancel()
        with pytest.raises(Cancelled):
            next(stream)
        assert generator.generate(label=1).complete

    def test_before_it_previews_are_texts(self, generator: Generator) -> None:
        for progress in generator.stream(label=LABELS, seed=1):
            np.testing.assert_array_equal(progress.preview(), ended(progress.preview(), END))
            result = progress.result()
            assert result.texts == tuple(map(words, progress.preview())) and result.complete == progress.last


def endless_word_model() -> Model:
    return tiny_word_model(media=Media("text", (LENGTH,), "int64"))


def threshold_word_model() -> Model:
    return tiny_word_model(defaults=Defaults("llada", 12, 1.5, solver_options={"blocks": 2, "threshold": 0.1}))


def many_blocks_word_model() -> Model:
    return tiny_word_model(defaults=Defaults("llada", 24, 1.5, solver_options={"blocks": 12}))


class TestBundle:
    @pytest.mark.parametrize("policy", ["fp32", "fp16"])
    @pytest.mark.parametrize("make", [tiny_word_model, threshold_word_model, many_blocks_word_model])
    def test_has_receipts_that_verify_repeats(
        self, exported_once: Callable[..., Path], make: Callable[[], Model], policy: str
    ) -> None:
        folder = exported_once(make, policy)
        bundle = read_bundle(folder)
        assert set(bundle.graphs) == {"condition", "step"} and bundle.media.kind == "text"
        of_media = [(r.graph, r.figure, r.tensor) for r in bundle.receipts if r.level == 4]
        assert of_media[:2] == [
            ("loop", "share", "codes of torch's tokens"), ("loop", "share", "codes of the evaluations that are needed"),
        ]  # fmt: skip
        again = verify(folder, "ort-cpu", threads=1)
        assert [r.tensor for r in again if r.level == 4] == [tensor for *_, tensor in of_media]
        golden = golden_of(bundle)
        np.testing.assert_array_equal(golden.media, ended(golden.trajectory[-1], END))

    def test_that_makes_another_end_fails(self, folder: Path, tmp_path: Path) -> None:
        shutil.copytree(folder, tmp_path / "b.mmgen")
        edit(tmp_path / "b.mmgen", lambda record: record["media"].update(end_id=10))
        with pytest.raises(MmgenError, match=r"receipt 4 \(media\) failed: loop, share of codes of torch's tokens"):
            verify(tmp_path / "b.mmgen", "ort-cpu", threads=1)

    def test_is_described(self, folder: Path) -> None:
        assert f"text, int64 (24), up to token {END}" in described(read_bundle(folder))

    def test_decodes_codes_to_a_text_that_ends(self, generator: Generator) -> None:
        media, codes = generator.decode(np.array([[4, END, *[5] * 22]]))
        assert codes is None and media.tolist() == [[4, *[END] * 23]]
        with pytest.raises(MmgenError, match=r"codes, got 31 to 31, wanted 0 to 29"):
            generator.decode(np.full((1, LENGTH), 31))

    def test_warms_up(self, folder: Path) -> None:
        backend = Counting()
        with Generator(read_bundle(folder), backend) as opened:
            opened.warm_up(batch=2, steps=6)
            assert 1 <= backend.calls["step"] <= 6

    def test_engines_are_built_for_all_of_its_graphs(self, folder: Path) -> None:
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
        _, made, _ = build(read_bundle(folder), parse(["sm86"]))
        assert set(made.engines) == {"condition", "step"}

    def test_a_result_without_one_text_says_so(self, generator: Generator) -> None:
        result = generator.generate(label=LABELS)
        with pytest.raises(MmgenError, match="text of a result, got 2 texts, wanted one; use texts"):
            _ = result.text
        with pytest.raises(MmgenError, match="text of a result, got media of another kind, wanted text; use media"):
            _ = dataclasses.replace(result, texts=None).text


def codebooks_word_model() -> Model:
    """Two codebooks of twelve codes each, as media."""
    return tiny_word_model(
        latent_shape=(2, 12), media=Media("codes", (2, 12), "int64"), denoiser=Levels().eval(), tokenizer=None,
        defaults=Defaults("maskgit", 6, 1.5, solver_options={"blocks": 2, "first": 4}),
    )  # fmt: skip


class Levels(torch.nn.Module):
    """The denoiser of words, on (R, 2, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_word_model().denoiser

    def forward(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.inner(tokens.flatten(1), context).unflatten(2, (2, 12))


def test_codebooks_are_media_and_unmasked_one_after_the_other(
    exported_once: Callable[..., Path], denoiser: Any
) -> None:
    with load(exported_once(codebooks_word_model), "ort-cpu", threads=1) as opened:
        made = [progress.latents() for progress in opened.stream(label=LABELS, seed=2)]
        result = opened.generate(label=LABELS, seed=2)
    wanted = published.levels(denoiser, masks(), PROCESS.mask_id, drawn(2, 6), steps=[4, 2], temperature=4.5)
    np.testing.assert_array_equal(np.stack(made).reshape(6, 2, LENGTH), np.stack(list(wanted)))
    assert (made[3][:, 0] < CODES).all() and (made[3][:, 1] == PROCESS.mask_id).all()
    np.testing.assert_array_equal(result.media, made[-1])
    assert result.texts is None and result.evaluations_run == 6


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads((folder / "bundle.json").read_text())
    record.pop(CHECKSUM)
    change(record)
    (folder / "bundle.json").write_text(json.dumps({**record, CHECKSUM: checksum_of(record)}))


@pytest.fixture(scope="module")
def older(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle as if it had been exported before step graphs had a threshold."""
    copy = tmp_path_factory.mktemp("older") / "b.mmgen"
    shutil.copytree(folder, copy)
    step = onnx.load(copy / "graphs" / "step.onnx", load_external_data=False)
    step.graph.input.remove(next(value for value in step.graph.input if value.name == "threshold"))
    step.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "threshold"))
    onnx.save(step, copy / "graphs" / "step.onnx")

    def without(record: dict[str, Any]) -> None:
        graph = record["graphs"]["step"]
        graph["inputs"] = [spec for spec in graph["inputs"] if spec["name"] != "threshold"]
        graph["sha256"] = sha256(copy / "graphs" / "step.onnx")

    edit(copy, without)
    return copy


def test_older_bundles_play_on_and_say_what_they_cannot(older: Path, generator: Generator) -> None:
    with load(older, "ort-cpu", threads=1) as opened:
        for options in ({}, {"blocks": 1}, {"sampling_temperature": 1.0}):
            asked: dict[str, Any] = {"label": LABELS, "seed": 4, "options": options}
            np.testing.assert_array_equal(opened.generate(**asked).latents, generator.generate(**asked).latents)
        with pytest.raises(MmgenError, match="this bundle can't unmask by a threshold; export it again, or leave"):
            opened.generate(label=1, options={"threshold": 0.9})


@pytest.mark.parametrize(("changes", "message"), [
    ({"decoder": torch.nn.Identity()}, "media of kind text with a module decoder"),
    ({"encoder": torch.nn.Identity()}, "media of kind text with a module encoder"),
    ({"tokenizer": None}, "media of kind text and no tokenizer.json; give Model.tokenizer"),
    ({"tokenizer": b"{}"}, "is not a tokenizer"),
    ({"media": Media("text", (LENGTH,), "int64", end_id=CODES)}, "end_id, got 30, wanted at most 29"),
    ({"media": Media("text", (LENGTH,), "int64", end_id=-1)}, "end_id, got -1"),
    ({"media": Media("text", (LENGTH,), "int64", end_id=True)}, "end_id, got True"),
    ({"media": Media("text", (LENGTH + 1,), "int64")}, r"got int64 \(25,\), wanted int64 \(24,\), the latent_shape"),
    ({"media": Media("text", (LENGTH,), "int32")}, "got int32"),
    ({"media": Media("codes", (LENGTH,), "int64", end_id=3)}, "kind codes: end_id, got 3, wanted None"),
    ({"media": Media("array", (LENGTH,), "int64")}, "model tiny-words has no decoder; give Model.decoder"),
    ({"defaults": Defaults("llada", 12, solver_options={"threshold": 2.0})}, "threshold.*got 2.0"),
    ({"process": dataclasses.replace(PROCESS, mask_id=END)}, f"end_id, got {END}, wanted a token from 0 to 29, not"),
])  # fmt: skip
def test_a_model_that_is_not_what_it_says_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match=message):
        export(tiny_word_model(**changes), tmp_path / "wrong.mmgen", policy="fp32")
    assert not (tmp_path / "wrong.mmgen").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r["media"].update(end_id=30), "media: end_id, got 30, wanted 0 to 29"),
    (lambda r: r["media"].update(kind="codes"), "kind, where there is an end_id, got codes, wanted text"),
    (lambda r: r["media"].update(shape=[23]), r"media: shape of codes, got \(23,\), wanted \(24,\)"),
    (lambda r: (r["media"].update(shape=[2, 12]), r.update(latent_shape=[2, 12])), r"media, got \(2, 'int64'\)"),
    (lambda r: r["media"].update(kind="array", end_id=None), "graphs.decode, got missing, wanted present"),
    (lambda r: r["graphs"].update(decode={**r["graphs"]["step"], "file": "graphs/decode.onnx"}),
     "graphs.decode, got present, wanted missing"),
    (lambda r: r.pop("tokenizer_sha256"), r"tokenizer.*, got missing, wanted present"),
    (lambda r: r["media"].update(tokenizer="other.json"), "other.json, got missing, wanted present"),
])  # fmt: skip
def test_a_manifest_whose_parts_do_not_fit_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    shutil.copytree(folder, tmp_path / "b.mmgen")
    edit(tmp_path / "b.mmgen", change)
    with pytest.raises(MmgenError, match=message):
        read_bundle(tmp_path / "b.mmgen")


def test_a_tokenizer_of_its_own_is_read(tmp_path: Path) -> None:
    media = Media("text", (LENGTH,), "int64", tokenizer="words.json", end_id=END)
    model = tiny_word_model(media=media, tokenizer=None, tokenizers={"words.json": tokenizer()})
    bundle = export(model, tmp_path / "b.mmgen", policy="fp32")
    assert set(bundle.tokenizers) == {"words.json"}
    with load(tmp_path / "b.mmgen", "ort-cpu", threads=1) as opened:
        assert opened.generate(label=1).text.startswith("word")
