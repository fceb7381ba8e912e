"""Checkpoints of format 2: written and read, shared with others, named where they don't fit, and exported."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoint import LENGTH, PLACES, WORDS, tiny_any_to_any, tiny_checkpoint
from tolerances import LIMITS

from mmgen.export import export
from mmgen.export.graphs.media import module_shape, to_module
from mmgen.export.networks.any_to_any import Sense
from mmgen.export.networks.grouped_vqvae import FilmVQVAE, GroupedVQVAEConfig, SeriesVQVAE, SoundVQVAE
from mmgen.export.sources import resolve
from mmgen.export.sources.checkpoint import any_to_any, int8, text_to_picture
from mmgen.export.sources.checkpoint.any_to_any import Channels, Decoded
from mmgen.runtime import Generator, load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import Media


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as it is embedded: matrices int8, pictures' autoencoder that of another one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    text_to_picture.save(folder / "small", *tiny_checkpoint())
    record, *parts = tiny_any_to_any()
    any_to_any.save(folder / "any", replace(record, storage="int8"), *parts)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """One that may be changed."""
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "any" / "config.json"
    record = json.loads(file.read_text())
    alter(record)
    file.write_text(json.dumps(record))


def test_it_is_read_as_it_was_saved(saved: Path) -> None:
    record, parts, tokenizer, examples = tiny_any_to_any()
    read, got = any_to_any.read(saved / "any")
    assert replace(read, files={}) == replace(record, storage="int8")
    stored = load_file(saved / "any" / "weights.safetensors")
    assert {name.partition(".")[0] for name in stored} == {"network", "sound"}
    as_read = torch.nn.ModuleDict({"network": got.network, **got.autoencoders}).state_dict()
    for name, weight in torch.nn.ModuleDict({"network": parts.network, **parts.autoencoders}).state_dict().items():
        restored = as_read[name]
        if int8.is_stored(weight):
            assert stored[name].dtype == torch.int8
            assert ((restored - weight).abs().flatten(1) <= weight.flatten(1).abs().amax(1, True) / 253).all()
        else:
            assert torch.equal(restored, weight.half().float())
    assert torch.equal(got.picture.codebook, parts.picture.codebook.half().float())
    model = resolve(str(saved / "any"))
    assert model.tokenizer == tokenizer and model.name == "any" and model.licence == "MIT"
    assert [e["text"] for e in model.examples if "text" in e] == ["red apple", "a cat"]
    shown = [e["picture"] for e in model.examples if "picture" in e]
    assert np.array_equal(np.stack(shown), examples["picture"].numpy())


def test_one_that_shares_nothing_has_its_own_autoencoder(tmp_path: Path) -> None:
    record, *parts = tiny_any_to_any()
    any_to_any.save(tmp_path / "whole", replace(record, shared="", storage="float32"), *parts)
    _, got = any_to_any.read(tmp_path / "whole")
    for name, weight in parts[0].picture.state_dict().items():
        assert torch.equal(got.picture.state_dict()[name], weight)


def test_an_autoencoder_that_differs_is_not_shared(copied: Path) -> None:
    record, parts, *others = tiny_any_to_any()
    parts.picture.codebook += 1
    with pytest.raises(MmgenError, match=r"the autoencoder is not the one in .*small; save without sharing it"):
        any_to_any.save(copied / "any", record, parts, *others)
    any_to_any.read(copied / "any")


@pytest.mark.parametrize("name", ["weights.safetensors", "tokenizer.json", "examples.safetensors"])
def test_a_file_that_changed_or_is_missing_is_named(copied: Path, name: str) -> None:
    file = copied / "any" / name
    file.write_bytes(file.read_bytes()[:-1] + b" ")
    with pytest.raises(MmgenError, match=rf"{name}: sha256, got .* the file changed"):
        resolve(str(copied / "any"))
    file.unlink()
    with pytest.raises(MmgenError, match=rf"{name} is missing; copy the whole checkpoint again"):
        resolve(str(copied / "any"))


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda r: r["inputs"].update(image=r["inputs"].pop("picture")), "inputs, got 'image', wanted picture"),
        (lambda r: r["outputs"].update(smell=r["outputs"]["text"]), "outputs, got 'smell', wanted text or sound"),
        (lambda r: r["outputs"]["text"].update(inputs=["sound"]), "inputs of text, got 'sound', wanted text"),
        (lambda r: r.update(embeds=["sound"]), "embeds, got 'sound', wanted text or picture"),
        (lambda r: r.update(autoencoders={}), "autoencoders, got none of sound, wanted one, since it is an output"),
        (lambda r: r["autoencoders"]["sound"].update(groups=3), "sound, got 4 places, 3 groups, 12 codes, wanted 4, 2"),
        (lambda r: r["network"].update(width=65), r"describes no network|tensor '.*', got"),
        (lambda r: r["network"].update(width=-1), r"describes no network"),
        (lambda r: r["network"]["outputs"]["sound"].update(parts=3), r"no network \(3 parts of 16 numbers for 4"),
        (lambda r: r["network"]["outputs"]["sound"].update(recalls="smell"), r"describes no network \('smell'\)"),
        (lambda r: r["network"].update(things=-2), r"describes no network"),
        (lambda r: r["network"].update(heads="two"), r"network: heads, got 'two', wanted int"),
        (lambda r: r["network"].update(vocabulary=3), r"tokens, got 10, wanted at most network\.vocabulary 3"),
        (lambda r: r["picture"].update(codes=31), r"tensor '.*codebook', got \(32, 8\), wanted \(31, 8\)"),
        (lambda r: r.update(shared="../small"), "shared, got '../small', wanted the name of a folder next to this one"),
        (lambda r: r.update(colour="red"), "'colour'|colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_named(copied: Path, alter: Any, message: str) -> None:
    change(copied, alter)
    with pytest.raises(MmgenError, match=message) as error:
        resolve(str(copied / "any"))
    assert "\n" not in str(error.value)


SHAPES = {
    "picture": ("image", (64, 64, 3)),
    "sound": ("audio", (51_200, 1)),
    "film": ("video", (8, 64, 64, 3)),
    "series": ("series", (64, 2)),
}  # fmt: skip


def media(name: str) -> Media:
    kind, shape = SHAPES[name]
    return Media(kind, shape, "float32")


@pytest.mark.parametrize("name", SHAPES)
def test_media_go_in_with_channels_before_time(name: str) -> None:
    network = tiny_any_to_any()[1].network
    given = torch.rand(2, *module_shape(media(name)), generator=torch.Generator().manual_seed(0)) - 0.5
    as_sensed = {"sound": given.flatten(1), "film": given.transpose(1, 2)}.get(name, given)
    assert torch.equal(Channels(Sense(network, name))(given), network.sense(name, as_sensed))


@pytest.mark.parametrize(("name", "codes", "groups"), [("sound", 64, 4), ("film", 64, 4), ("series", 16, 2)])
def test_media_come_out_with_channels_before_time(name: str, codes: int, groups: int) -> None:
    config = GroupedVQVAEConfig(codes, groups, codes=32, channels=16, encoder_blocks=1, decoder_blocks=1)
    kinds = {"sound": SoundVQVAE(config, 1), "film": FilmVQVAE(config, 8), "series": SeriesVQVAE(config, 2)}
    made = Decoded(kinds[name], name)(torch.zeros(2, codes, groups, dtype=torch.int64))
    assert made.shape == (2, *module_shape(media(name)))


@pytest.fixture(scope="module")
def generator(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    bundle = export(resolve(str(saved / "any")), tmp_path_factory.mktemp("bundles") / "any.mmgen", policy="fp16")
    with load(bundle.folder, "ort-cpu", threads=1) as opened:
        yield opened


def test_a_text_is_what_torch_makes(saved: Path, generator: Generator) -> None:
    """One position at each step, the surest one, with the word that is likeliest there (Nie et al. 2025, alg. 4)."""
    _, parts = any_to_any.read(saved / "any")
    network = parts.network.eval()
    picture = tiny_any_to_any()[3]["picture"][:1]
    (text,) = (torch.tensor([[WORDS.index(w) for w in ["a", "red", "cat"]] + [0] * (32 - 3)]),)
    with torch.no_grad():
        seen = network.sense("picture", to_module(picture, generator.bundle.conditions[1].media))
        prefix = network.given({"text": text, "picture": seen})
        tokens = torch.full((1, LENGTH, 1), len(WORDS))
        for _ in range(LENGTH):
            p, word = network.made("text", tokens, *prefix)[0, :, :, 0].softmax(0).max(0)  # (LENGTH,)
            place = int(p.masked_fill(tokens[0, :, 0] != len(WORDS), -1).argmax())
            tokens[0, place] = word[place]
    made = generator.generate("text", text="a red cat", picture=picture.numpy())
    assert made.media[0].tolist() == tokens[0, :, 0].tolist()


def test_a_sound_is_what_torch_makes_of_its_codes(saved: Path, generator: Generator) -> None:
    _, parts = any_to_any.read(saved / "any")
    made = generator.generate("sound", text="red apple", seed=3)
    with torch.no_grad():
        wanted = Decoded(parts.autoencoders["sound"].eval(), "sound")(torch.from_numpy(made.latents))
    wanted = wanted.clamp(-1, 1).transpose(1, 2).numpy()
    assert made.media.shape == (1, PLACES * 800, 1)
    assert np.sqrt(((made.media - wanted) ** 2).mean() / (wanted**2).mean()) < LIMITS["any to any, half, sound"]


def test_vectors_are_torch_s(saved: Path, generator: Generator) -> None:
    _, parts = any_to_any.read(saved / "any")
    picture = tiny_any_to_any()[3]["picture"]
    with torch.no_grad():
        seen = parts.network.eval().sense("picture", to_module(picture, generator.bundle.conditions[1].media))
        wanted = parts.network.embed({"picture": seen}).numpy()
    assert np.abs(generator.embed(picture=list(picture.numpy())) - wanted).max() < LIMITS["any to any, half, embedding"]
