"""``bundle.json`` is read strictly: whatever is wrong with it is one clear error."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import edit

from mmgen.runtime import MmgenError
from mmgen.runtime.storage.bundle import read_bundle, write_manifest
from mmgen.runtime.storage.schema import MANIFEST

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy.mmgen"
    shutil.copytree(bundle_folder, folder)
    return folder


def test_what_is_written_is_what_was_read(copy: Path) -> None:
    bundle = read_bundle(copy)
    before = (copy / MANIFEST).read_text()
    write_manifest(bundle, copy)
    assert (copy / MANIFEST).read_text() == before
    assert read_bundle(copy) == bundle


def test_a_bundle_from_before_conditions_had_tensors_of_their_own_is_the_same(copy: Path) -> None:
    bundle = read_bundle(copy)

    def older(record: dict[str, Any]) -> None:
        for condition in record["conditions"]:
            del condition["graph_name"], condition["null_sha256"]

    edit(copy, older)
    assert read_bundle(copy) == bundle
    assert [condition.tensor for condition in bundle.conditions] == ["prompt", "label"]


NULL = {"kind": "array", "dtype": "int64", "null": "nulls/x.npy", "null_sha256": "0" * 64}  # of what was a class
EDITS: list[tuple[Edit, str]] = [
    (lambda r: r.update(format="mmgen/9"), "format, got 'mmgen/9', wanted 'mmgen/1'"),
    (lambda r: r.pop("latent_shape"), "field 'latent_shape' is missing"),
    (lambda r: r.update(colour="red"), "unknown field 'colour'"),
    (lambda r: r.update(latent_shape="big"), "latent_shape, got 'big'"),
    (lambda r: r.update(latent_shape=[4, 8.5, 8]), r"latent_shape\[1\], got 8.5"),
    (lambda r: r["process"].update(kind="magic"), "process: kind, got 'magic', wanted 'diffusion' or 'flow'"),
    (lambda r: r["process"].update(prediction="x"), "process: prediction, got 'x'"),
    (lambda r: r["graphs"]["step"].update(sha256="0" * 64), "step.onnx: sha256, got"),
    (lambda r: r["graphs"]["step"].update(file="../step.onnx"), "'../step.onnx' leaves the bundle"),
    (lambda r: r["graphs"]["step"].update(file="/etc/passwd"), "'/etc/passwd' leaves the bundle"),
    (lambda r: r["graphs"]["step"].update(file="graphs/none.onnx"), "none.onnx is missing"),
    (lambda r: r["conditions"][1].update(kind="array", null="../x.npy"), "'../x.npy' leaves the bundle"),
    (lambda r: r["conditions"][1].update(NULL, null="nulls/x.npy"), "x.npy is missing"),
    (lambda r: r["conditions"][1].update(NULL, null="golden.npz"), f"golden.npz: sha256, got .*, wanted {'0' * 16}"),
    (lambda r: r["conditions"][1].update(NULL, null_sha256=None), "null_sha256, got missing, wanted present"),
    (lambda r: r["conditions"][1].update(null=[1]), r"conditions\[1\]: null, got \[1\]"),
    (lambda r: r["defaults"].update(steps="many"), "steps, got 'many'"),
    (lambda r: r["defaults"].update(steps=True), "steps, got True"),
]


@pytest.mark.parametrize(("change", "message"), EDITS, ids=[message[:30] for _, message in EDITS])
def test_a_changed_manifest_is_refused(copy: Path, change: Edit, message: str) -> None:
    edit(copy, change)
    with pytest.raises(MmgenError, match=message) as caught:
        read_bundle(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"mmgen/1"', "null"])
def test_a_manifest_that_is_not_one_is_refused(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(MmgenError, match=MANIFEST):
        read_bundle(copy)


def test_no_folder_and_no_manifest_say_what_to_do(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(MmgenError, match="is not there; make one with mmgen-export"):
        read_bundle(tmp_path / "nothing.mmgen")
    (copy / MANIFEST).unlink()
    with pytest.raises(MmgenError, match="can't be read"):
        read_bundle(copy)


@pytest.mark.parametrize("name", ["tokenizer.json", "golden.npz", "graphs/decode.onnx"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_file_is_refused_by_its_hash(copy: Path, name: str, damage: str) -> None:
    path = copy / name
    data = bytearray(path.read_bytes())
    match damage:
        case "truncate":
            path.write_bytes(data[: len(data) // 2])
        case "flip":
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "delete":
            path.unlink()
    with pytest.raises(MmgenError, match=path.name):
        read_bundle(copy)
