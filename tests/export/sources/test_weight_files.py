"""Whole folders as diffusers and transformers write them, or once wrote them: variants, shards, pickles, links."""

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from amused_models import amused_pipeline
from diffusers import AmusedPipeline, DiTPipeline
from diffusers_models import build
from safetensors.torch import load_file, save_file

from mmgen.export.sources import resolve
from mmgen.runtime.base.errors import MmgenError

STEM = "diffusion_pytorch_model"
SAFE = f"{STEM}.safetensors"
PARTS = ("transformer", "vae")
SHARDS: dict[str, Any] = {"max_shard_size": "100KB"}
PICKLED: dict[str, Any] = {"safe_serialization": False}
PICKLE = "ignore:.*is a pickle"

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> DiTPipeline:
    return build(tmp_path_factory.mktemp("plain") / "tiny", count=16)


@pytest.fixture(scope="module")
def halved(pipeline: DiTPipeline, tmp_path_factory: pytest.TempPathFactory) -> DiTPipeline:
    """Convert the pipeline to half precision, as for the variant fp16."""
    folder = tmp_path_factory.mktemp("halved") / "tiny"
    pipeline.save_pretrained(folder)
    return DiTPipeline.from_pretrained(folder, torch_dtype=torch.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "DiT-v1.5"  # diffusers looks for older names where no folder above has a dot in its own


def read(folder: Path, variant: str | None = None) -> Weights:
    """All weights of the denoiser and the decoder, in float32."""
    model = resolve(str(folder), variant=variant)
    found = model.denoiser.state_dict(prefix="denoiser.") | model.decoder.state_dict(prefix="decoder.")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    return found


def written(pipeline: DiTPipeline) -> Weights:
    """Return what ``read`` is to find."""
    found = pipeline.transformer.state_dict(prefix="denoiser.transformer.")
    vae = pipeline.vae.state_dict(prefix="decoder.")
    found |= {name: tensor for name, tensor in vae.items() if name.startswith(("decoder.decoder", "decoder.post"))}
    return {name: tensor.float() for name, tensor in found.items()}


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def as_once(folder: Path, variant: str) -> None:
    """Give a variant's shards and index the names that diffusers first had for them."""
    for part in PARTS:
        renamed = {}
        for file in list((folder / part).iterdir()):
            if found := re.fullmatch(rf"{STEM}\.{variant}(-\d+-of-\d+)\.(\w+)", file.name):
                renamed[file.name] = f"{STEM}{found[1]}.{variant}.{found[2]}"
                file.rename(file.with_name(renamed[file.name]))
        (index,) = (folder / part).glob(f"{STEM}.*.index.{variant}.json")
        record = json.loads(index.read_text())
        record["weight_map"] = {tensor: renamed[name] for tensor, name in record["weight_map"].items()}
        once = index.name.replace(f".index.{variant}.json", f".{variant}.index.json")
        index.with_name(once).write_text(json.dumps(record))
        index.unlink()


FORMS: dict[str, dict[str, Any]] = {
    "one file": {},
    "shards": SHARDS,
    "a pickle": PICKLED,
    "pickled shards": PICKLED | SHARDS,
}


@pytest.mark.filterwarnings(PICKLE)
@pytest.mark.parametrize("form", FORMS)
def test_weights_are_read_in_every_form_that_diffusers_writes(pipeline: DiTPipeline, folder: Path, form: str) -> None:
    pipeline.save_pretrained(folder, **FORMS[form])
    assert same(read(folder), written(pipeline))


@pytest.mark.filterwarnings(PICKLE)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_variant_is_read_where_there_is_nothing_else_and_said(
    halved: DiTPipeline, folder: Path, form: str, variant: str
) -> None:
    halved.save_pretrained(folder, variant=variant, **FORMS[form])
    with pytest.warns(UserWarning, match=f"of transformer and vae only the variant {variant} is there, and is read"):
        assert same(read(folder), written(halved))


@pytest.mark.filterwarnings(PICKLE)
@pytest.mark.parametrize("form", ["shards", "pickled shards"])
def test_shards_of_a_variant_are_read_by_the_names_that_they_once_had(
    halved: DiTPipeline, folder: Path, form: str
) -> None:
    halved.save_pretrained(folder, variant="fp16", **FORMS[form])
    as_once(folder, "fp16")
    with pytest.warns(UserWarning, match="only the variant fp16 is there"):
        assert same(read(folder), written(halved))


def test_beside_variants_what_is_none_is_read_and_a_variant_where_it_is_asked_for(
    pipeline: DiTPipeline, halved: DiTPipeline, folder: Path
) -> None:
    pipeline.save_pretrained(folder)
    halved.save_pretrained(folder, variant="fp16", **SHARDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read(folder), written(pipeline))
        assert same(read(folder, "fp16"), written(halved))
        assert not same(written(halved), written(pipeline))


@pytest.mark.filterwarnings(PICKLE)
def test_what_is_no_variant_comes_first_even_as_a_pickle(
    pipeline: DiTPipeline, halved: DiTPipeline, folder: Path
) -> None:
    pipeline.save_pretrained(folder, **PICKLED)
    halved.save_pretrained(folder, variant="fp16")
    assert same(read(folder), written(pipeline))


def test_safetensors_come_before_pickles(pipeline: DiTPipeline, halved: DiTPipeline, folder: Path) -> None:
    halved.save_pretrained(folder, **PICKLED)
    pipeline.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read(folder), written(pipeline))


def test_among_several_variants_somebody_must_choose(
    pipeline: DiTPipeline, halved: DiTPipeline, folder: Path
) -> None:
    halved.save_pretrained(folder, variant="fp16")
    pipeline.save_pretrained(folder, variant="non_ema")
    with pytest.raises(MmgenError, match=r"several variants .*got fp16 non_ema, wanted .*; --variant fp16"):
        read(folder)
    assert same(read(folder, "non_ema"), written(pipeline))
    assert same(read(folder, "fp16"), written(halved))


@pytest.mark.parametrize("asked", [None, "fp16"])
def test_a_variant_of_one_part_goes_with_the_others_as_they_are(
    pipeline: DiTPipeline, halved: DiTPipeline, folder: Path, asked: str | None
) -> None:
    pipeline.save_pretrained(folder)
    (folder / "transformer" / SAFE).unlink()
    halved.transformer.save_pretrained(folder / "transformer", variant="fp16")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read(folder, asked)
    assert [re.sub(".*: ", "", str(w.message)) for w in caught] == (
        [] if asked else ["of transformer only the variant fp16 is there, and is read"]
    )
    wanted = written(pipeline) | {n: t for n, t in written(halved).items() if n.startswith("denoiser")}
    assert same(found, wanted)


def test_a_variant_that_no_part_has_is_an_error(pipeline: DiTPipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder)
    with pytest.raises(MmgenError, match="no weights of the variant 'bf16'; leave out --variant"):
        read(folder, "bf16")
    with pytest.raises(MmgenError, match="has no variants, wanted a diffusers folder"):
        resolve(None, variant="fp16")


# Indices


def change(folder: Path, **changes: Any) -> Path:
    """Rewrite the transformer's index with other fields."""
    index = folder / "transformer" / f"{SAFE}.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | changes))
    return index


@pytest.mark.parametrize("wrong", [{}, None, [], {"a": 1}])
def test_an_index_that_names_no_files_is_an_error(pipeline: DiTPipeline, folder: Path, wrong: Any) -> None:
    pipeline.save_pretrained(folder, **SHARDS)
    change(folder, weight_map=wrong)
    with pytest.raises(MmgenError, match=r"index\.json: weight_map, got .*, wanted a file for each tensor"):
        read(folder)


def test_an_index_that_says_what_is_not_so_is_an_error(pipeline: DiTPipeline, folder: Path) -> None:
    """By diffusers' word alone, a tensor that isn't there would stay as memory happened to be."""
    pipeline.save_pretrained(folder, **SHARDS)
    index = folder / "transformer" / f"{SAFE}.index.json"
    shard = folder / "transformer" / json.loads(index.read_text())["weight_map"]["proj_out_2.bias"]
    tensors = load_file(shard)
    del tensors["proj_out_2.bias"]
    save_file(tensors, shard)
    with pytest.raises(MmgenError, match=rf"{shard.name} has no tensor 'proj_out_2\.bias'"):
        read(folder)
    shard.unlink()
    with pytest.raises(MmgenError, match=f"{shard.name} is missing; copy"):
        read(folder)
    index.unlink()
    with pytest.raises(MmgenError, match=rf"transformer has no {SAFE}\.index\.json, .*says what is in which file"):
        read(folder)


def test_an_index_needs_no_more_than_its_map(pipeline: DiTPipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder, **SHARDS)
    index = change(folder)
    index.write_text(json.dumps({"weight_map": json.loads(index.read_text())["weight_map"]}))
    assert same(read(folder), written(pipeline))


def test_an_index_comes_before_a_whole_file(pipeline: DiTPipeline, halved: DiTPipeline, folder: Path) -> None:
    halved.save_pretrained(folder)
    pipeline.save_pretrained(folder, **SHARDS)
    assert (folder / "transformer" / SAFE).is_file()
    assert same(read(folder), written(pipeline))


# Links and pointers


def cached(folder: Path, cache: Path) -> Path:
    """Copy a folder as Hugging Face's cache has it: files are links to blobs, and the folder's name is its revision."""
    snapshot = cache / "models--someone--DiT-S-2" / "snapshots" / "0123456789abcdef"
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        blob = cache / "models--someone--DiT-S-2" / "blobs" / f"{abs(hash(file)):x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.mark.parametrize("form", ["one file", "shards"])
def test_a_snapshot_in_the_cache_is_read_through_its_links_and_named_after_its_repository(
    pipeline: DiTPipeline, folder: Path, tmp_path: Path, form: str
) -> None:
    pipeline.save_pretrained(folder, **FORMS[form])
    snapshot = cached(folder, tmp_path / ".cache")
    assert same(read(snapshot), written(pipeline))
    model = resolve(str(snapshot))
    assert (model.name, model.source) == ("DiT-S-2", "someone/DiT-S-2@0123456789abcdef")
    weights = next((snapshot / "vae").glob("*.safetensors"))
    blob = weights.resolve()
    blob.unlink()
    with pytest.raises(MmgenError, match=rf"{weights.name} is missing, where a link leads to .*{blob.name}"):
        read(snapshot)


def test_a_pointer_of_git_lfs_is_called_that(pipeline: DiTPipeline, folder: Path) -> None:
    pipeline.save_pretrained(folder)
    (folder / "vae" / SAFE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(MmgenError, match=f"{SAFE} is a pointer of Git LFS, not the file itself; git lfs pull"):
        read(folder)


# Text encoders, which transformers writes


@pytest.fixture(scope="module")
def amused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("amused")
    amused_pipeline(root / "files").save_pretrained(root / "tiny")
    return root / "tiny"


def text_encoder(pipeline: AmusedPipeline) -> Weights:
    return {name: tensor.float() for name, tensor in pipeline.text_encoder.state_dict(prefix="encoder.").items()}


def one_pickle(part: Path) -> None:
    """As transformers wrote it before version 5."""
    torch.save(load_file(part / "model.safetensors"), part / "pytorch_model.bin")
    (part / "model.safetensors").unlink()


def pickled_shards(part: Path) -> None:
    tensors = load_file(part / "model.safetensors")
    names = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(names.values()):
        torch.save({name: tensors[name] for name in tensors if names[name] == file}, part / file)
    (part / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (part / "model.safetensors").unlink()


def variant(part: Path) -> None:
    (part / "model.safetensors").rename(part / "model.fp16.safetensors")


def stale_index(part: Path) -> None:
    """Beside a whole file, which transformers prefers; diffusers prefers the index."""
    (part / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')


@pytest.mark.filterwarnings(PICKLE)
@pytest.mark.filterwarnings("ignore:.* only the variant fp16 is there")
@pytest.mark.parametrize("form", [one_pickle, pickled_shards, variant, stale_index])
def test_a_text_encoder_is_read_in_every_form_that_transformers_writes_or_wrote(
    amused: Path, tmp_path: Path, form: Callable[[Path], None]
) -> None:
    shutil.copytree(amused, tmp_path / "tiny")
    form(tmp_path / "tiny" / "text_encoder")
    model = resolve(str(tmp_path / "tiny"))
    assert model.condition
    assert same(model.condition.state_dict(), text_encoder(AmusedPipeline.from_pretrained(amused)))


def test_a_whole_pipeline_of_a_variant_is_read(amused: Path, tmp_path: Path) -> None:
    pipeline = AmusedPipeline.from_pretrained(amused, torch_dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", **SHARDS)
    assert (tmp_path / "half" / "text_encoder" / "model.fp16.safetensors").is_file()
    with pytest.warns(UserWarning, match="of transformer and vqvae and text_encoder only the variant fp16"):
        model = resolve(str(tmp_path / "half"))
    assert model.condition
    assert same(model.condition.state_dict(), text_encoder(pipeline))
