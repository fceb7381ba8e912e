"""A bundle of four outputs: each plays as if it were alone, and what they share is stored once."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from four_outputs import PICTURE, four_outputs
from manifests import edit
from tolerances import LIMITS

from mmgen.export import MmgenError, export
from mmgen.export.graphs.media import to_module
from mmgen.export.several import WEIGHTS, alone
from mmgen.runtime import Cancelled, Generator, Request, load
from mmgen.runtime.base.errors import MmgenError as RuntimeError_
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.verify import verify

RED_CAT = np.random.default_rng(0).integers(0, 256, PICTURE.shape, dtype=np.uint8)
OTHER = RED_CAT[::-1].copy()
ASKED: dict[str, dict[str, Any]] = {
    "picture": {"text": "a red cat"},
    "caption": {"image": RED_CAT},
    "sound": {"text": "a dog", "image": RED_CAT},
    "motion": {"image": RED_CAT},
}


@pytest.fixture(scope="module")
def folder(exported_once: Callable[..., Path]) -> Path:
    return exported_once(four_outputs, "fp16")


@pytest.fixture(scope="module")
def generator(folder: Path) -> Iterator[Generator]:
    with load(folder, "ort-cpu", threads=1) as opened:
        yield opened


def test_every_output_makes_its_media(generator: Generator) -> None:
    made = {name: generator.generate(name, **asked) for name, asked in ASKED.items()}
    assert {name: (result.media.shape, result.media.dtype.name) for name, result in made.items()} == {
        "picture": ((1, 16, 16, 3), "uint8"), "caption": ((1, 8), "int64"), "sound": ((1, 64, 1), "float32"),
        "motion": ((1, 8, 2), "float32"),
    }  # fmt: skip
    assert np.abs(made["sound"].media).max() <= 1


def test_the_first_output_is_the_default(generator: Generator) -> None:
    assert generator.bundle.output == "picture"
    named, silent = generator.generate("picture", text="a cat"), generator.generate(text="a cat")
    assert np.array_equal(named.media, silent.media)
    assert generator.generate(Request(output="motion", conditions={"image": RED_CAT})).media.shape == (1, 8, 2)


def test_a_bundle_is_loaded_for_the_output_that_is_wanted(folder: Path, generator: Generator) -> None:
    with load(folder, "ort-cpu", threads=1, output="motion") as opened:
        assert np.array_equal(opened.generate(image=RED_CAT).media, generator.generate("motion", image=RED_CAT).media)


@pytest.mark.parametrize("name", ["picture", "sound"])
def test_each_is_what_the_model_with_this_output_alone_makes(generator: Generator, tmp_path: Path, name: str) -> None:
    bundle = export(alone(four_outputs(), name), tmp_path / "alone.mmgen", policy="fp16")
    with load(bundle.folder, "ort-cpu", threads=1) as single:
        assert np.array_equal(single.generate(**ASKED[name]).latents, generator.generate(name, **ASKED[name]).latents)


def test_all_receipts_are_repeated(folder: Path) -> None:
    for name in ASKED:
        assert {receipt.level for receipt in verify(folder, "ort-cpu", output=name)} == {3, 4}


def test_what_outputs_share_is_stored_once(folder: Path) -> None:
    bundle = read_bundle(folder)
    weights = [g.weight_bytes or 0 for output in bundle.outputs.values() for g in output.graphs.values() if g.data]
    assert (folder / WEIGHTS).stat().st_size < 0.75 * sum(weights)
    pictures = {output.graphs["input_image"].file for name, output in bundle.outputs.items() if name != "picture"}
    assert pictures == {"graphs/input_image.onnx"}


def test_a_file_is_as_good_as_an_array(generator: Generator, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
    image.fromarray(RED_CAT).save(tmp_path / "cat.png")
    wanted = generator.generate("motion", image=RED_CAT).media
    for given in (str(tmp_path / "cat.png"), tmp_path / "cat.png", (tmp_path / "cat.png").read_bytes(), [RED_CAT]):
        assert np.array_equal(generator.generate("motion", image=given).media, wanted)
    two = generator.generate("motion", image=[tmp_path / "cat.png", OTHER])
    assert np.array_equal(two.media[:1], wanted) and two.media.shape[0] == 2


def test_another_size_is_refused_unless_it_may_be_resized(generator: Generator, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
    image.fromarray(np.repeat(np.repeat(RED_CAT, 2, 0), 2, 1)).save(tmp_path / "large.png")
    with pytest.raises(MmgenError, match="32"):
        generator.generate("motion", image=tmp_path / "large.png")
    assert generator.generate("motion", image=tmp_path / "large.png", resize=True).media.shape == (1, 8, 2)


@pytest.mark.parametrize(
    "given", [RED_CAT[:8], RED_CAT.astype(np.float32) + 0.5, [], 3, "no such file.png", b"no picture", [None]], ids=str
)
def test_media_that_do_not_fit_are_one_clear_line(generator: Generator, given: object) -> None:
    with pytest.raises(MmgenError) as caught:
        generator.generate("motion", image=given)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_an_absent_picture_is_what_the_model_has_for_it(generator: Generator) -> None:
    absent = generator.generate("motion")
    black = generator.generate("motion", image=np.zeros(PICTURE.shape, np.uint8))  # what its null is
    assert np.allclose(absent.latents, black.latents, atol=LIMITS["several outputs, half, media encoded"])
    assert not np.array_equal(absent.latents, generator.generate("motion", image=RED_CAT).latents)


def test_guidance_goes_away_from_an_absent_picture(generator: Generator) -> None:
    once, twice = (generator.generate("motion", image=RED_CAT, guidance=w, steps=1).latents for w in (1.0, 2.0))
    absent = generator.generate("motion", steps=1).latents
    expected = 2 * once - absent  # one Euler step is linear in the velocity
    assert np.allclose(twice, expected, atol=LIMITS["several outputs, guided"])


def test_embeddings_are_torch_s(generator: Generator) -> None:
    model = four_outputs()
    with torch.no_grad():
        features = model.encoders["image"](to_module(torch.from_numpy(RED_CAT[None]), PICTURE))
        vector = torch.nn.functional.normalize(model.embeds["image"](features)).numpy()
    made = generator.embed(image=[RED_CAT, OTHER])
    assert made.shape == (2, 16) and np.allclose(np.linalg.norm(made, axis=1), 1, atol=LIMITS["length of an embedding"])
    assert np.allclose(made[:1], vector, atol=LIMITS["several outputs, half, embedding"])
    assert generator.embed(text="a red cat").shape == (1, 16)


@pytest.mark.parametrize("given", [{}, {"image": RED_CAT, "text": "a"}, {"imagine": 1}], ids=["none", "two", "other"])
def test_one_input_is_embedded_at_a_time(generator: Generator, given: dict[str, object]) -> None:
    with pytest.raises(MmgenError, match=r"embed, got .*, wanted one of 'image' or 'text'"):
        generator.embed(**given)


def test_streams_end_and_are_cancelled_as_of_any_bundle(generator: Generator) -> None:
    for name, asked in ASKED.items():
        *_, last = generator.stream(name, **asked)
        assert last.last and np.array_equal(last.result().media, generator.generate(name, **asked).media)
        stream = generator.stream(name, **asked)
        next(stream)
        stream.cancel()
        with pytest.raises(Cancelled):
            next(stream)


def test_a_deadline_shortens_every_output(generator: Generator) -> None:
    for name, asked in ASKED.items():
        assert generator.generate(name, **asked, deadline=1e-6).evaluations_run == 1


def test_threads_that_want_different_outputs_get_what_one_alone_gets(folder: Path, generator: Generator) -> None:
    wanted = {name: generator.generate(name, **asked).media for name, asked in ASKED.items()}
    wrong: list[str] = []
    with load(folder, "ort-cpu", threads=1) as opened:  # which opens the others in the middle of it

        def ask(first: int) -> None:
            for i in range(8):
                name = list(ASKED)[(first + i) % len(ASKED)]
                if not np.array_equal(opened.generate(name, **ASKED[name]).media, wanted[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("default",), "film", "default, got 'film', wanted 'picture' or 'caption'"),
        (("outputs", "sound", "inputs"), ["text", "smell"], "outputs.sound: inputs, got 'smell'"),
        (("outputs", "motion", "media", "labels"), ["x"], "outputs.motion: media"),
        (("outputs", "sound", "media", "dtype"), "uint8", "outputs.sound: media"),
        (("outputs", "caption", "golden"), "../x.npz", "leaves the bundle"),
        (("inputs", 1, "media", "shape"), [16, 16], "media of 'image'"),
        (("inputs", 1, "shape"), [16, 31], "outputs.caption: graphs.input_image"),
        (("tokenizers",), {}, "tokenizer_sha256, got missing"),
        (("outputs",), {}, "default"),
    ],
    ids=str,
)  # fmt: skip
def test_a_manifest_whose_parts_do_not_fit_is_refused(
    folder: Path, tmp_path: Path, place: tuple[Any, ...], value: object, message: str
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy.mmgen")

    def change(record: dict[str, Any]) -> None:
        for key in place[:-1]:
            record = record[key]
        record[place[-1]] = value

    edit(copy, change)
    with pytest.raises(RuntimeError_, match=message.replace(".", r"\.")):
        read_bundle(copy)


def test_a_weight_that_changed_is_found(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy.mmgen")
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(RuntimeError_, match=r"weights\.data: sha256"):
        read_bundle(copy)


def test_the_manifest_has_the_inputs_once(folder: Path) -> None:
    record = json.loads((folder / "bundle.json").read_text())
    assert record["format"] == "mmgen/2"
    assert [each["name"] for each in record["inputs"]] == ["text", "image"]
    assert {name: each["inputs"] for name, each in record["outputs"].items()} == {
        "picture": ["text"], "caption": ["image"], "sound": ["text", "image"], "motion": ["image"]
    }  # fmt: skip
