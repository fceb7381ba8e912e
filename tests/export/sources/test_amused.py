"""aMUSEd folders, against diffusers' own AmusedPipeline with the same noise."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from amused_models import CODES, GRID, LENGTH, MASK, amused_pipeline
from amused_pipeline import run_pipeline
from diffusers import AmusedImg2ImgPipeline, AmusedPipeline, AmusedScheduler
from diffusers_models import edit

from mmgen.export.base.lint import lint
from mmgen.export.base.model import Model
from mmgen.export.graphs.latent import condition_source, encode_source
from mmgen.export.graphs.masked import codes_decode_source, masked_step_source
from mmgen.export.sources import resolve
from mmgen.export.tracing.trace import trace
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.loop.masked_plan import ROWS
from mmgen.runtime.request.tokenizer import open_tokenizer
from mmgen.runtime.solvers.masked import table
from mmgen.runtime.storage import tensors as names
from mmgen.runtime.storage.process import Masked

PROMPTS = ["a red apple", "zebra"]
STEPS, WEIGHT = 8, 3.0


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> AmusedPipeline:
    return amused_pipeline(tmp_path_factory.mktemp("tokenizer") / "files")


@pytest.fixture(scope="module")
def model(written: Path) -> Model:
    return resolve(str(written))


def uniforms() -> np.ndarray:
    return np.random.default_rng(0).random((STEPS, 2, len(PROMPTS), GRID * GRID), np.float32)


def test_the_folder_says_what_it_takes_and_makes(model):
    assert model.process == Masked(codes=CODES, mask_id=MASK)
    assert model.latent_shape == (GRID, GRID) and model.media.shape == (2 * GRID, 2 * GRID, 3)
    assert (model.defaults.solver, model.defaults.steps, model.defaults.guidance) == ("amused", 12, 10.0)
    (prompt,) = model.conditions
    assert (prompt.kind, prompt.null, prompt.length) == ("text", "", LENGTH)


def test_prompts_become_the_ids_that_clips_tokenizer_gives(model, pipeline, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(model.tokenizer)
    (prompt,) = model.conditions
    encode = open_tokenizer(tmp_path / "tokenizer.json", prompt.length, prompt.pad_id)
    texts = ["", "Red  APPLE", "a red apple"]
    wanted = pipeline.tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH).input_ids
    np.testing.assert_array_equal(encode(texts), wanted)
    long = "abcdefghijklmnopqrstuvwxyz"
    with pytest.warns(UserWarning, match="text cut to 12 tokens"):
        cut = encode([long])
    np.testing.assert_array_equal(cut, pipeline.tokenizer([long], truncation=True, max_length=LENGTH).input_ids)


def test_a_prompt_is_as_long_as_the_tokenizer_says(folder, pipeline):
    """Which is what the pipeline pads it to; more than the text encoder has places for, and it fails."""
    config = folder / "tokenizer" / "tokenizer_config.json"
    record = json.loads(config.read_text())
    lengths = {}
    for length in (8, 20, None):
        config.write_text(json.dumps(record | {"model_max_length": length} if length else record))
        if not length:
            config.write_text(json.dumps({name: v for name, v in record.items() if name != "model_max_length"}))
        lengths[length] = resolve(str(folder)).conditions[0].length
    assert lengths == {8: 8, 20: LENGTH, None: LENGTH}
    config.write_text(json.dumps(record | {"model_max_length": 8}))
    theirs = AmusedPipeline.from_pretrained(folder)
    seen = []
    theirs.transformer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    theirs(PROMPTS, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    model = resolve(str(folder))
    (folder / "tokenizer.json").write_bytes(model.tokenizer)
    (prompt,) = model.conditions
    ids = open_tokenizer(folder / "tokenizer.json", prompt.length, prompt.pad_id)(PROMPTS)
    with torch.no_grad():
        text, pooled = model.condition(torch.from_numpy(ids))
    torch.testing.assert_close(text, seen[0]["encoder_hidden_states"])
    torch.testing.assert_close(pooled, seen[0]["pooled_text_emb"])


def test_graphs_make_the_pipelines_tokens_and_pictures(model, pipeline, tmp_path):
    """From prompts to pictures in float32, through ONNX: every step's tokens, from the same noise."""
    wanted, wanted_pictures = run_pipeline(pipeline, PROMPTS, uniforms(), STEPS, WEIGHT)
    (tmp_path / "tokenizer.json").write_bytes(model.tokenizer)
    (prompt,) = model.conditions
    ids = open_tokenizer(tmp_path / "tokenizer.json", prompt.length, prompt.pad_id)(["", "", *PROMPTS])
    condition = condition_source(model)
    with torch.no_grad():
        examples = list(zip(model.conditioning, condition.module(*condition.inputs.values()), strict=True))
    sessions = {}
    for source in (condition, masked_step_source(model, examples), codes_decode_source(model)):
        trace(source, tmp_path / f"{source.role}.onnx")
        lint(tmp_path / f"{source.role}.onnx")
        sessions[source.role] = onnxruntime.InferenceSession(tmp_path / f"{source.role}.onnx")

    made = sessions["condition"].run(None, {"prompt": ids})
    conditioning = {n: m.reshape(2, 2, *m.shape[1:]) for n, m in zip(model.conditioning, made, strict=True)}
    rows, tokens = table("amused", model.process, GRID * GRID, STEPS), np.full((2, GRID, GRID), MASK)
    agree = []
    for row, (choice, order) in enumerate(uniforms().reshape(STEPS, 2, 2, GRID, GRID)):
        numbers = {name: getattr(rows, name)[row].reshape(shape) for name, shape in ROWS.items()}
        feed = {
            names.TOKENS: tokens, names.CHOICE: choice, names.ORDER: order, **numbers, **conditioning,
            names.GUIDANCE: np.array([1 - WEIGHT, WEIGHT], np.float32),
        }  # fmt: skip
        tokens, _ = sessions["step"].run(None, feed)
        agree.append((tokens == wanted[row]).mean())
    assert min(agree) >= 0.999  # 1.0
    assert len(np.unique(tokens)) > 12  # 15 of 60 codes; with few it would prove nothing
    (pictures,) = sessions["decode"].run(None, {"codes": tokens})
    assert np.abs(pictures.astype(int) - wanted_pictures).max() <= 1
    assert pictures.std() > 5


def test_pictures_become_the_codes_that_img2img_starts_from(model, pipeline, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 2 * GRID, 2 * GRID, 3), np.uint8)
    seen, add_noise = [], AmusedScheduler.add_noise
    monkeypatch.setattr(
        AmusedScheduler, "add_noise", lambda self, codes, *more, **named: (
            seen.append(codes.numpy().copy()), add_noise(self, codes, *more, **named)
        )[1],
    )  # fmt: skip
    img2img = AmusedImg2ImgPipeline(**pipeline.components)
    img2img.set_progress_bar_config(disable=True)
    img2img(PROMPTS, pictures / np.float32(255), num_inference_steps=2, output_type="latent")
    source = encode_source(model)
    trace(source, tmp_path / "encode.onnx")
    lint(tmp_path / "encode.onnx")
    (codes,) = onnxruntime.InferenceSession(tmp_path / "encode.onnx").run(None, {names.MEDIA: pictures})
    assert codes.dtype == np.int64 and source.outputs == (names.CODES,)
    np.testing.assert_array_equal(codes, seen[0])
    assert len(np.unique(codes)) > 10  # 19 of 60


@pytest.mark.parametrize(("file", "change", "message"), [
    ("model_index.json", {"scheduler": ["diffusers", "DDIMScheduler"]}, "model_index.json: scheduler, got"),
    ("transformer/config.json", {"codebook_size": 50}, "codebook_size, got 50, wanted 60, the entries of the vqvae"),
    ("transformer/config.json", {"downsample": True}, "upsample, got False, wanted the same as downsample"),
    ("vqvae/config.json", {"lookup_from_codebook": False}, "lookup_from_codebook, got False"),
    ("scheduler/scheduler_config.json", {"mask_token_id": 64}, "mask_token_id, got 64, wanted 60 to 63"),
    ("scheduler/scheduler_config.json", {"masking_schedule": "log"}, "masking_schedule, got 'log', wanted cosine"),
    ("tokenizer/tokenizer_config.json", {"padding_side": "left"}, "padding_side, got 'left', wanted 'right'"),
    ("text_encoder/config.json", {"hidden_size": 64}, "text_encoder"),
])  # fmt: skip
def test_what_is_not_supported_is_named(folder, file, change, message):
    edit(folder / file, **change)
    with pytest.raises(MmgenError, match=message):
        resolve(str(folder))


@pytest.mark.parametrize("missing", ["text_encoder/model.safetensors", "tokenizer", "scheduler/scheduler_config.json"])
def test_what_is_missing_is_named(folder, missing):
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(MmgenError, match=missing.partition("/")[0]):
        resolve(str(folder))
