"""mmgen checkpoints come back as they were saved, and each kind of damage has a name."""

import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers_models import damage, edit
from safetensors.torch import load_file
from tiny_checkpoint import tiny_checkpoint

from mmgen.export.sources import resolve
from mmgen.export.sources.checkpoint import text_to_picture as checkpoint
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.hashes import sha256


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    checkpoint.save(folder, *tiny_checkpoint())
    return folder


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    record, vqvae, dit, tokenizer = tiny_checkpoint()
    record = dataclasses.replace(record, storage="float32")
    checkpoint.save(tmp_path / "small", record, vqvae, dit, tokenizer)
    model = resolve(str(tmp_path / "small"))
    x, t = torch.randn(2, *model.latent_shape), torch.tensor([1000.0, 10.0])
    prompt = torch.randint(0, 10, (2, record.denoiser.text_length))
    with torch.no_grad():
        assert model.condition and model.quantiser and model.encoder
        (context,) = model.condition(prompt)
        assert torch.equal(model.denoiser(x, t, context), dit(x, t, context))
        mean, std = (
            torch.tensor(v)[:, None, None] for v in (record.autoencoder.latents_mean, record.autoencoder.latents_std)
        )
        vectors, codes = model.quantiser(x)
        assert torch.equal(codes, vqvae.nearest_codes(x * std + mean))
        assert torch.equal(vectors, vqvae.lookup(codes)) and torch.equal(model.decoder(vectors), vqvae.decode(vectors))
        pictures = model.decoder(vectors)
        torch.testing.assert_close(model.encoder(pictures) * std + mean, vqvae.encode(pictures))
    assert (model.name, model.licence, model.process, model.defaults) == (
        record.name,
        record.licence,
        record.process,
        record.defaults,
    )
    assert model.examples == ({"prompt": "red apple"},) and model.tokenizer == tokenizer


def test_half_storage_rounds_and_loads_as_float(saved: Path) -> None:
    _, _, dit, _ = tiny_checkpoint()
    stored = load_file(saved / "weights.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.float16}
    weight = resolve(str(saved)).denoiser.get_parameter("patch_in.weight")
    assert torch.equal(weight, dit.patch_in.weight.half().float())


def test_a_weight_too_large_for_half_is_not_saved_and_the_old_checkpoint_stays(saved: Path) -> None:
    record, vqvae, dit, tokenizer = tiny_checkpoint()
    before = sha256(saved / "weights.safetensors")
    torch.nn.init.constant_(dit.patch_in.bias, 1e6)
    with pytest.raises(MmgenError, match=r"patch_in\.bias' is not finite as torch\.float16.*as float32"):
        checkpoint.save(saved, record, vqvae, dit, tokenizer)
    assert sha256(saved / "weights.safetensors") == before and [p.name for p in saved.parent.iterdir()] == [saved.name]
    checkpoint.save(saved, dataclasses.replace(record, storage="float32"), vqvae, dit, tokenizer)
    assert resolve(str(saved)).source_sha256 != before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def rehash(folder: Path) -> None:
    files = {name: sha256(folder / name) for name in ("weights.safetensors", "tokenizer.json")}
    edit(folder / "config.json", files=files)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def lie_about_size(path: Path) -> None:
    """Write a header that claims more than the file holds."""
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])


@pytest.mark.parametrize("damaged", [cut, lie_about_size])
def test_a_damaged_checkpoint_fails_by_its_hash_and_without_one_by_its_content(saved: Path, damaged: Any) -> None:
    damaged(saved / "weights.safetensors")
    with pytest.raises(MmgenError, match=r"weights\.safetensors: sha256, got .* wanted .*the file changed"):
        resolve(str(saved))
    rehash(saved)
    with pytest.raises(MmgenError, match=r"weights\.safetensors is damaged or cut short"):
        resolve(str(saved))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("denoiser.patch_in.weight"), r"tensor 'denoiser\.patch_in\.weight' is missing \(1 are\)"),
        (lambda t: t.update(extra=torch.ones(1)), "tensor 'extra' has no place in the model"),
        (lambda t: t.update({"denoiser.patch_in.bias": torch.ones(3)}), r"patch_in\.bias', got \(3,\), wanted \(32,\)"),
        (lambda t: t.update({"denoiser.patch_in.bias": torch.ones(32).int()}), r"got torch\.int32, wanted a floating"),
        (lambda t: t["autoencoder.codebook"].fill_(float("nan")), "quantiser of small: tensor 'codebook', got NaN"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(saved: Path, change: Any, message: str) -> None:
    damage(saved / "weights.safetensors", change)
    rehash(saved)
    with pytest.raises(MmgenError, match=message):
        resolve(str(saved))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "mmgen-checkpoint/9"},
            "format, got 'mmgen-checkpoint/9', wanted 'mmgen-checkpoint/1' or 'mmgen-checkpoint/2'; update mmgen",
        ),
        ({"process": ...}, "field 'process' is missing"),
        ({"flavour": "sweet"}, "unknown field 'flavour'"),
        ({"process": {"kind": "poisson"}}, "kind, got 'poisson', wanted 'diffusion' or 'flow' or 'edm' or 'masked'"),
        ({"pad_id": "none"}, "pad_id, got 'none', wanted int"),
        ({"files": {}}, "sha256, got .* wanted None"),
    ],
)
def test_a_bad_config_is_named(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved / "config.json", **changes)
    with pytest.raises(MmgenError, match=message):
        resolve(str(saved))


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("denoiser", {"latent_shape": [4, 8, 8]}, r"latent_shape, got .4, 8, 8., wanted .8, 4, 4., the autoenc"),
        ("autoencoder", {"latents_std": [1.0]}, "latents_std, got 1 numbers, wanted one for each of 8 channels"),
        ("denoiser", {"heads": 0}, "config.json: denoiser.heads, got 0"),
        ("autoencoder", {"channels": [8, -16]}, r"config.json: autoencoder.channels, got \(8, -16\)"),
        ("denoiser", {"heads": 3}, "denoiser.width, got 32, wanted a multiple of heads 3"),
        ("autoencoder", {"channels": [8, 12]}, "config.json describes no network"),
        ("denoiser", {"vocabulary": 4}, r"tokenizer\.json: tokens, got \d+, wanted at most denoiser\.vocabulary 4"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_together_are_named(
    saved: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    record = json.loads((saved / "config.json").read_text())
    edit(saved / "config.json", **{part: record[part] | changes})
    with pytest.raises(MmgenError, match=message):
        resolve(str(saved))


def test_a_checkpoint_without_its_tokenizer_is_not_whole(saved: Path) -> None:
    (saved / "tokenizer.json").unlink()
    with pytest.raises(MmgenError, match=r"tokenizer\.json is missing"):
        resolve(str(saved))
