"""Folders of diffusers: what is read of them, and what each kind of damage is called."""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers_models import TINY_DIT, TINY_KL, build, damage, edit
from safetensors.torch import load_file, save_file

from mmgen.export.base.model import Model
from mmgen.export.sources import diffusers_parts, resolve
from mmgen.runtime.base.errors import MmgenError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a good diffusers folder, which no test changes."""
    folder = tmp_path_factory.mktemp("sources") / "tiny"
    build(folder, count=16)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """Copy the folder, to damage it."""
    return Path(shutil.copytree(written, tmp_path / "tiny"))


def same_weights(a: Model, b: Model) -> bool:
    left, right = a.denoiser.state_dict(), b.denoiser.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_diffusers_folder_says_what_it_takes_and_makes(written: Path) -> None:
    model = resolve(str(written))
    (label,) = model.conditions
    assert (label.name, label.kind, label.count, label.null) == ("class_id", "class", 1000, 1000)
    assert model.latent_shape == (3, 8, 8) and model.media.shape == (16, 16, 3)
    assert (model.defaults.steps, model.defaults.guidance) == (50, 4.0)  # DiTPipeline's own
    assert model.name == "tiny" and len(model.source_sha256) == 64 and "diffusers" in model.versions
    assert not any(p.requires_grad for p in model.denoiser.parameters()) and not model.denoiser.training


def test_a_model_of_ten_classes_has_a_null_class_of_its_own(tmp_path: Path) -> None:
    """DiTPipeline writes 1000 whatever the model; LabelEmbedding's extra row is the last."""
    build(tmp_path / "ten", TINY_DIT | {"num_embeds_ada_norm": 10}, count=16)
    model = resolve(str(tmp_path / "ten"))
    assert (model.conditions[0].count, model.conditions[0].null) == (10, 10)
    model.denoiser(torch.zeros(1, 3, 8, 8), torch.zeros(1), torch.tensor([10]))


BAD_FIELDS: list[tuple[str, dict[str, Any], str]] = [
    ("model_index.json", {"_class_name": "PixArtAlphaPipeline"}, "_class_name.*DiTPipeline"),
    (
        "model_index.json",
        {"transformer": ["my_code", "DiTTransformer2DModel"]},
        "model_index.json: transformer.*my_code",
    ),
    ("model_index.json", {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "model_index.json: vae.*VQModel"),
    ("model_index.json", {"vae": ...}, "model_index.json: vae, wanted"),
    ("model_index.json", {"scheduler": ["my_code", "DDIMScheduler"]}, "model_index.json: scheduler.*my_code"),
    ("transformer/config.json", {"norm_type": "ada_norm_single"}, "norm_type, got 'ada_norm_single'"),
    ("transformer/config.json", {"num_embeds_ada_norm": None}, "num_embeds_ada_norm, got None"),
    ("transformer/config.json", {"activation_fn": "swiglu"}, "activation_fn, got 'swiglu'"),
    ("transformer/config.json", {"out_channels": 4}, "out_channels, got 4, wanted 3, or 6"),
    ("transformer/config.json", {"sample_size": 9}, "sample_size, got 9, wanted a multiple of patch_size 2"),
    ("transformer/config.json", {"patch_size": 0}, "patch_size, got 0"),
    ("transformer/config.json", {"cross_attention_dim": 768}, "cross_attention_dim = 768 isn't supported"),
    ("transformer/config.json", {"quantization_config": {"bits": 4}}, "quantization_config = .*isn't supported"),
    ("vae/config.json", {"norm_type": "spatial"}, "norm_type, got 'spatial', wanted 'group'"),
    ("vae/config.json", {"out_channels": 1}, "out_channels, got 1, wanted 3"),
    ("vae/config.json", {"up_block_types": ["UpDecoderBlock2D", "UNetUpBlock"]}, "up_block_types.*UNetUpBlock"),
    ("vae/config.json", {"block_out_channels": 16}, "block_out_channels, got 16, wanted a list"),
    ("vae/config.json", {"scaling_factor": 0}, "scaling_factor, got 0, wanted a positive number"),
    ("vae/config.json", {"latent_channels": 4}, "transformer in_channels, got 3, wanted the 4 latent channels"),
    ("vae/config.json", {"vq_embed_dim": 8}, "transformer in_channels, got 3, wanted the 8 latent channels"),
]


@pytest.mark.parametrize(("file", "changes", "message"), BAD_FIELDS)
def test_what_is_not_supported_is_named(folder: Path, file: str, changes: dict[str, Any], message: str) -> None:
    edit(folder / file, **changes)
    with pytest.raises(MmgenError, match=message):
        resolve(str(folder))


@pytest.mark.parametrize("field", ["shift_factor", "latents_mean", "latents_std"])
def test_what_the_pipeline_does_not_apply_is_not_applied_either_and_said(tmp_path: Path, field: str) -> None:
    value = 0.25 if field == "shift_factor" else [0.5, 0.25, 2.0]
    pipeline = build(tmp_path / "kl", autoencoder=TINY_KL | {"scaling_factor": 0.5, field: value}, count=16)
    with pytest.warns(UserWarning, match=rf"vae/config\.json: {field} = .* isn't applied, as DiTPipeline doesn't"):
        model = resolve(str(tmp_path / "kl"))
    seen: list[torch.Tensor] = []
    with patch.object(pipeline.vae, "decode", lambda z, decode=pipeline.vae.decode: (seen.append(z), decode(z))[1]):
        theirs = pipeline([3], num_inference_steps=2, guidance_scale=1.0, output_type="pt").images
    torch.testing.assert_close((model.decoder(seen[0] * 0.5) / 2 + 0.5).clamp(0, 1), theirs)
    picture = torch.randn(2, 3, 16, 16)
    assert model.encoder  # as there is nothing to compare with: what the decoder is the inverse of
    torch.testing.assert_close(model.encoder(picture), pipeline.vae.encode(picture).latent_dist.mode() * 0.5)


def test_of_more_classes_than_the_pipeline_knows_the_null_is_the_trained_one_and_said(tmp_path: Path) -> None:
    build(tmp_path / "many", TINY_DIT | {"num_embeds_ada_norm": 1200}, count=16)
    with pytest.warns(UserWarning, match="1200 classes, so guidance takes 1200 for no class"):
        assert resolve(str(tmp_path / "many")).conditions[0].null == 1200


def test_the_scheduler_is_of_the_class_that_the_index_names(folder: Path) -> None:
    """As of the pipeline, whatever class the file says that it was written by."""
    edit(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    theirs = diffusers_parts.import_library("diffusers").DiTPipeline.from_pretrained(folder).scheduler
    assert type(theirs).__name__ == "EulerDiscreteScheduler"
    assert resolve(str(folder)).defaults.solver == "euler"


def test_a_folder_with_the_class_name_and_settings_of_2022_loads(folder: Path) -> None:
    """facebook/DiT-XL-2-256 still says Transformer2DModel, with that class's settings, all of them off."""
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"], id2label={"0": "tench"})
    old = {
        "cross_attention_dim": None,
        "num_vector_embeds": None,
        "only_cross_attention": False,
        "use_linear_projection": False,
    }
    edit(
        folder / "transformer" / "config.json",
        _class_name="Transformer2DModel",
        _diffusers_version="0.12.0.dev0",
        **old,
    )
    edit(folder / "vae" / "config.json", scaling_factor=...)
    assert resolve(str(folder)).latent_shape == (3, 8, 8)


def test_attention_weights_by_their_names_of_2022_load(folder: Path, written: Path) -> None:
    path = folder / "vae" / WEIGHTS
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    tensors = load_file(path)
    for new_name in [name for name in tensors if any(part in name for part in old)]:
        part = next(part for part in old if part in new_name)
        tensors[new_name.replace(part, old[part])] = tensors.pop(new_name)
    assert any(".proj_attn." in name for name in tensors)
    save_file(tensors, path)
    z = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(resolve(str(folder)).decoder(z), resolve(str(written)).decoder(z), rtol=0, atol=0)


def test_weights_stored_as_half_become_float(folder: Path, written: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    model = resolve(str(folder))
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}
    assert model.source_sha256 != resolve(str(written)).source_sha256


def test_weights_in_several_files_are_the_same_weights(folder: Path, written: Path) -> None:
    shutil.rmtree(folder / "transformer")
    diffusers = diffusers_parts.import_library("diffusers")
    transformer = diffusers.DiTTransformer2DModel.from_pretrained(written / "transformer")
    transformer.save_pretrained(folder / "transformer", max_shard_size="200KB")
    shards = sorted((folder / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    assert same_weights(resolve(str(folder)), resolve(str(written)))
    shards[1].unlink()
    with pytest.raises(MmgenError, match=f"{shards[1].name} is missing"):
        resolve(str(folder))


def test_a_shard_outside_the_folder_is_refused(folder: Path) -> None:
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "../vae/x.safetensors"}}')
    with pytest.raises(MmgenError, match="leaves the folder"):
        resolve(str(folder))


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_tensors_are_read_from_a_pickle_with_a_note(folder: Path, written: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    with pytest.warns(UserWarning, match="only its tensors are read"):
        assert same_weights(resolve(str(folder)), resolve(str(written)))


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    path = folder / "transformer" / WEIGHTS
    path.unlink()
    path.with_suffix(".bin").write_bytes(pickle.dumps({"a": Trap(tmp_path / "ran")}, protocol=2))
    with pytest.warns(UserWarning, match="pickle"), pytest.raises(MmgenError, match="transformer can't be loaded"):
        resolve(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["pos_embed.proj.bias"].__setitem__(0, float("nan")), r".*embed\.proj\.bias'.*NaN"),
        (lambda t: t["proj_out_2.bias"].__setitem__(0, float("inf")), r"proj_out_2\.bias'.*infinity"),
        (lambda t: t.pop("proj_out_1.weight"), r"missing keys: proj_out_1\.weight"),
        (lambda t: t.update(extra=torch.ones(1)), "unexpected keys: extra"),
        (lambda t: t.update({"proj_out_1.bias": torch.ones(3)}), r"transformer can't be loaded.*proj_out_1\.bias"),
    ],
)  # fmt: skip
def test_bad_tensors_are_named(folder: Path, change: Any, message: str) -> None:
    damage(folder / "transformer" / WEIGHTS, change)
    with pytest.raises(MmgenError, match=message):
        resolve(str(folder))


def test_a_codebook_with_nan_is_found(folder: Path) -> None:
    damage(folder / "vae" / WEIGHTS, lambda t: t["quantize.embedding.weight"].fill_(float("nan")))
    with pytest.raises(MmgenError, match="quantiser of tiny: tensor 'codebook', got NaN"):
        resolve(str(folder))


def test_files_cut_short_or_missing_are_named(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(MmgenError, match=f"vae/{WEIGHTS} is damaged or cut short"):
        resolve(str(folder))
    path.unlink()
    with pytest.raises(MmgenError, match=f"vae has no {WEIGHTS}"):
        resolve(str(folder))
    (folder / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(MmgenError, match=r"scheduler_config\.json is not JSON"):
        resolve(str(folder))
    (folder / "vae" / "config.json").unlink()
    edit_me = folder / "scheduler" / "scheduler_config.json"
    edit_me.unlink()
    with pytest.raises(MmgenError, match=r"scheduler_config\.json can't be read"):
        resolve(str(folder))
