"""mmgen checkpoints whose denoiser makes tokens: saved, loaded, exported and played."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_checkpoint import CODES, tiny_checkpoint, tiny_token_checkpoint

from mmgen.export.exporter import export
from mmgen.export.sources import resolve
from mmgen.export.sources.checkpoint import text_to_picture as checkpoint
from mmgen.runtime import load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.process import Masked


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "saved", *tiny_token_checkpoint(storage="float32"))
    return tmp_path / "saved"


def test_it_comes_back_as_it_was_saved(saved: Path) -> None:
    record, vqvae, dit, _ = tiny_token_checkpoint()
    model = resolve(str(saved))
    assert model.process == record.process and model.latent_shape == (4, 4) and model.quantiser is None
    tokens, prompt = torch.randint(0, CODES + 1, (2, 4, 4)), torch.tensor([[2, 5, 0, 0, 0, 0], [3, 6, 0, 0, 0, 0]])
    with torch.no_grad():
        assert torch.equal(model.denoiser(tokens, *model.condition(prompt)), dit(tokens, dit.text(prompt)))
        codes = tokens.clamp_max(CODES - 1)
        assert torch.equal(model.decoder(codes), vqvae.decode(vqvae.lookup(codes)))
        pictures = torch.rand(2, 3, 16, 16) * 2 - 1
        assert torch.equal(model.encoder(pictures), vqvae.nearest_codes(vqvae.encode(pictures)))


def test_it_is_exported_and_played(saved: Path, tmp_path: Path) -> None:
    bundle = export(resolve(str(saved)), tmp_path / "tokens.mmgen", policy="fp16")
    assert bundle.precision.half_share["step"].weight_bytes > 0.9
    with load(tmp_path / "tokens.mmgen", "ort-cpu", threads=1) as generator:
        result = generator.generate(prompt=["red apple", "blue cat"], seed=1)
    assert result.media.shape == (2, 16, 16, 3) and (result.codes < CODES).all()
    assert (result.codes[0] != result.codes[1]).any() and np.array_equal(result.codes, result.latents)


@pytest.mark.parametrize(("changes", "message"), [
    ({"process": Masked(codes=31, mask_id=32)}, "process, got 31 codes, mask 32, wanted 32 codes, mask 32"),
    ({"process": Masked(codes=32, mask_id=40)}, "process, got 32 codes, mask 40"),
    ({"denoiser": tiny_checkpoint()[0].denoiser}, r"latent_shape, got \(8, 4, 4\), wanted \(32, 4, 4\)"),
])  # fmt: skip
def test_parts_that_do_not_fit_together_are_named(changes: dict, message: str, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "wrong", *tiny_token_checkpoint(**changes))
    with pytest.raises(MmgenError, match=message):
        resolve(str(tmp_path / "wrong"))
