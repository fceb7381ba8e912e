"""How checkpoints are stored: matrices as int8, and the parts of one that another uses too."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import tiny_checkpoint, tiny_token_checkpoint
from tolerances import LIMITS
from torch import Tensor

from mmgen.export.sources import resolve
from mmgen.export.sources.checkpoint import int8
from mmgen.export.sources.checkpoint import text_to_picture as checkpoint
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.hashes import sha256

WEIGHTS = "weights.safetensors"
BIG = "denoiser.blocks.0.mlp.0.weight"  # (128, 32), as many numbers as make one worth it


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two checkpoints, of latents and, with what it shares, of tokens; both int8."""
    record, *parts = tiny_checkpoint()
    checkpoint.save(tmp_path / "small", dataclasses.replace(record, storage="int8"), *parts)
    checkpoint.save(tmp_path / "tokens", *tiny_token_checkpoint(storage="int8", shared="small"))
    return tmp_path


def change(folder: Path, config: dict[str, Any], alter: Callable[[dict[str, Tensor]], object]) -> None:
    """Edit a checkpoint, its hashes too."""
    tensors = load_file(folder / WEIGHTS)
    alter(tensors)
    save_file(tensors, folder / WEIGHTS)
    record = json.loads((folder / "config.json").read_text())
    record["files"][WEIGHTS] = sha256(folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(record | config))


# int8


def test_big_matrices_of_the_denoiser_are_stored_as_int8_with_a_scale_for_each_row(saved: Path) -> None:
    _, vqvae, dit, _ = tiny_checkpoint()
    stored = load_file(saved / "small" / WEIGHTS)
    assert stored[BIG].dtype == torch.int8 and stored[f"{BIG}.scale"].dtype == torch.float32
    assert {t.dtype for n, t in stored.items() if n.startswith("autoencoder.")} == {torch.float16}
    _, read_vqvae, read = checkpoint.read(saved / "small")
    for name, weight in dit.state_dict().items():
        got, whole = read.state_dict()[name], f"denoiser.{name}"
        assert (stored[whole].dtype == torch.int8) == (weight.ndim > 1 and weight.numel() >= int8.LEAST)
        if stored[whole].dtype == torch.int8:
            step = weight.abs().amax(1, keepdim=True) / 127
            assert ((got - weight).abs() <= step * 0.5001).all()
            rows = weight.abs().argmax(1, keepdim=True)
            torch.testing.assert_close(got.gather(1, rows), weight.gather(1, rows))  # the largest is kept
        else:
            assert torch.equal(got, weight.half().float())
    for name, weight in vqvae.state_dict().items():
        assert torch.equal(read_vqvae.state_dict()[name], weight.half().float())


def test_rows_of_any_size_are_as_near() -> None:
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32))
    weight *= torch.logspace(-6, 3, 64)[:, None]  # rows of any size
    weight[5] = 0
    restored = int8.restore(int8.store("w", weight), "")["w"]
    error = (restored - weight).norm(dim=1) / weight.norm(dim=1).clamp_min(1e-30)
    assert error.max() < LIMITS["int8, a row"] and not restored[5].any()


@pytest.mark.parametrize(
    ("alter", "config", "message"),
    [
        (lambda t: t.pop(f"{BIG}.scale"), {}, r"mlp\.0\.weight' is int8 without 'denoiser\..*\.scale'"),
        (lambda t: t.update({f"{BIG}.scale": torch.ones(3)}), {}, r"weight\.scale', got .*\(3,\), wanted .*\(128,\)"),
        (lambda t: t.update({f"{BIG}.scale": torch.ones(128).half()}), {}, r"weight\.scale', got torch\.float16 .128"),
        (lambda t: t.update({BIG: torch.ones(128, 32)}), {}, r"tensor 'denoiser.*\.scale' has no place in the model"),
        (lambda t: t[f"{BIG}.scale"].fill_(float("nan")), {}, r"small: tensor 'blocks\.0\.mlp\.0\.weight', got NaN"),
        (lambda t: None, {"storage": "float16"}, r"scale' has no place in the model"),
        (lambda t: None, {"storage": "int4"}, r"storage, got 'int4', wanted 'float32' or 'float16' or 'int8'"),
    ],
)  # fmt: skip
def test_int8_that_does_not_fit_is_named(saved: Path, alter: Any, config: dict[str, str], message: str) -> None:
    change(saved / "small", config, alter)
    with pytest.raises(MmgenError, match=message):
        resolve(str(saved / "small"))


def test_a_weight_that_is_not_finite_is_not_stored(tmp_path: Path) -> None:
    record, vqvae, dit, tokenizer = tiny_checkpoint()
    dit.blocks[0].mlp[0].weight.data[3, 4] = torch.inf
    with pytest.raises(MmgenError, match=r"blocks\.0\.mlp\.0\.weight' is not finite"):
        checkpoint.save(tmp_path / "bad", dataclasses.replace(record, storage="int8"), vqvae, dit, tokenizer)
    assert not any(tmp_path.iterdir())


# What two checkpoints share


def test_a_shared_autoencoder_and_tokenizer_are_stored_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(file.name for file in (saved / "tokens").iterdir()) == ["config.json", WEIGHTS]
    assert all(name.startswith("denoiser.") for name in load_file(saved / "tokens" / WEIGHTS))
    _, vqvae, _ = checkpoint.read(saved / "tokens")
    _, same, _ = checkpoint.read(saved / "small")
    assert all(torch.equal(t, same.state_dict()[n]) for n, t in vqvae.state_dict().items())
    model = checkpoint.load(saved / "tokens")
    assert model.tokenizer == (saved / "small" / "tokenizer.json").read_bytes()
    monkeypatch.chdir(saved / "tokens")
    assert checkpoint.load(Path()).source_sha256 == model.source_sha256


def test_what_is_shared_must_be_there_and_unchanged(saved: Path) -> None:
    change(saved / "small", {}, lambda t: t["autoencoder.codebook"].mul_(2))
    with pytest.raises(MmgenError, match=r"small/weights\.safetensors: sha256, got .* the file changed"):
        checkpoint.read(saved / "tokens")
    shutil.rmtree(saved / "small")
    with pytest.raises(MmgenError, match=r"small/weights\.safetensors is missing"):
        checkpoint.read(saved / "tokens")


@pytest.mark.parametrize("name", ["..", ".", "../tokens", "/", "a/b", "/etc"])
def test_only_a_folder_beside_it_can_be_shared_with(saved: Path, name: str) -> None:
    change(saved / "tokens", {"shared": name}, lambda t: None)
    with pytest.raises(MmgenError, match=r"config\.json: shared, got '.*', wanted the name of a folder next to"):
        checkpoint.read(saved / "tokens")


@pytest.mark.parametrize("part", ["autoencoder", "tokenizer"])
def test_what_differs_is_not_shared(saved: Path, part: str) -> None:
    record, vqvae, dit, tokenizer = tiny_token_checkpoint(shared="small")
    if part == "tokenizer":
        tokenizer += b" "
    else:
        vqvae.codebook += 1
    before = sha256(saved / "tokens" / WEIGHTS)
    with pytest.raises(MmgenError, match=f"the {part} is not the one in .*small; save without sharing it"):
        checkpoint.save(saved / "tokens", record, vqvae, dit, tokenizer)
    assert sha256(saved / "tokens" / WEIGHTS) == before
