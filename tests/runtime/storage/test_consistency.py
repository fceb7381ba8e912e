"""A manifest whose parts don't fit together, or that isn't what was written, is one clear error when it is read."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import edit

from mmgen.runtime import MmgenError
from mmgen.runtime.files.json_records import DIGITS, LARGEST, read_json
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import CHECKSUM
from mmgen.runtime.storage.schema import MANIFEST

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy.mmgen"
    shutil.copytree(bundle_folder, folder, ignore=shutil.ignore_patterns("engines", "optimised"))
    return folder


def of(role: str, kind: str, number: int, **changes: object) -> Edit:
    """Change an input or output of a graph."""
    return lambda record: record["graphs"][role][kind][number].update(changes)


EDITS: list[tuple[Edit, str]] = [
    (of("condition", "outputs", 0, name="conditign_invariants"), "input condition_invariants, which nothing"),
    (of("condition", "outputs", 0, dtype="fLoat16"), "graphs.condition: dtype of condition_invariants, got fLoat16"),
    (of("condition", "outputs", 0, dtype="float32"), "graphs.step: input condition_invariants: dtype"),
    (of("condition", "outputs", 0, shape=["R", 600]), "input condition_invariants: size, got 3840, wanted 3600"),
    (of("timestep", "outputs", 0, shape=["N", 2]), "graphs.step: input timestep_invariants: size"),
    (of("decode", "outputs", 0, shape=["B", 2**40, 16, 3]), "graphs.decode: shape of media"),
    (of("decode", "outputs", 0, shape=["Q", 16, 16, 3]), "graphs.decode: axis of media, got Q, wanted B"),
    (of("decode", "outputs", 1, shape=["R", 8, 8]), "graphs.decode: axis of codes, got R, wanted B"),
    (of("decode", "inputs", 0, name="state"), "graphs.decode: input state, which nothing makes"),
    (of("step", "inputs", 1, name="prediction"), "step: inputs and outputs, got prediction, wanted names, each"),
    (of("step", "inputs", 1, shape=[4, 4]), r"step: input transition, got float32 \(4, 4\), wanted float32 \(4, 7\)"),
    (of("step", "outputs", 0, name="after"), "graphs.step: output next_state, got None"),
    (of("encode", "inputs", 0, dtype="float32"), "graphs.encode: input media"),
    (lambda r: r["graphs"].pop("decode"), "graphs.decode, got missing, wanted present"),
    (lambda r: r["graphs"].update(paint=r["graphs"]["decode"]), "graphs' files"),
    (lambda r: r["graphs"]["step"].update(data="step.onnx.data"), "graphs.step: folder of data"),
    (lambda r: r["graphs"]["step"].update(data_sha256=None), "graphs.step: data_sha256, got missing"),
    (lambda r: r["axes"].pop("N"), "axes"),
    (lambda r: r["axes"].update(Q=r["axes"]["N"]), "axes"),
    (lambda r: r["axes"]["B"].update(max=0), "axes.B: max, got 0, wanted at least 1"),
    (lambda r: r["latent_shape"].__setitem__(1, -8), r"latent_shape, got \(4, -8, 8\), wanted sizes from 1"),
    (lambda r: r.update(latent_shape=[4, 16, 8]), r"graphs.step: input state, got float32 \(4, 'B', 4, 8, 8\)"),
    (lambda r: r["media"].update(dtype="object"), "media: dtype, got object"),
    (lambda r: r["media"].update(range=[0, 2**40]), "media.range"),
    (lambda r: r["conditions"][1].update(count=None), r"conditions\[1\]: count, got 0, wanted at least 1"),
    (lambda r: r["conditions"][1].update(null=-1), r"conditions\[1\]: null, got -1"),
    (lambda r: r["conditions"][0].update(length=0), r"conditions\[0\]: length"),
    (lambda r: r["conditions"][0].update(name="label"), "conditions, got label, wanted names, each once"),
    (lambda r: r["conditions"][0].update(kind="array", null=None), "graphs.condition: input prompt, got int64"),
    (lambda r: r.update(tokenizer_sha256=None), "tokenizer_sha256, got missing"),
    (lambda r: r["process"].update(train_timesteps=0), "process: train_timesteps, got 0"),
    (lambda r: r["process"].update(beta_end=1e300), r"process.beta_end, got 1e\+300, wanted a number from"),
    (lambda r: r["defaults"].update(steps=0), "defaults: steps, got 0"),
    (lambda r: r["defaults"].update(solver_options={"eta": 10**19}), "defaults.solver_options.eta"),
    (lambda r: r["process"].update(kind=["diffusion"]), r"process: kind, got \['diffusion'\]"),
    (lambda r: r["process"].update(prediction=True), "process: prediction, got True"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), EDITS, ids=[str(i) for i in range(len(EDITS))])
def test_parts_that_do_not_fit_are_named(copy: Path, change: Edit, message: str) -> None:
    edit(copy, change)
    with pytest.raises(MmgenError, match=message) as caught:
        read_bundle(copy)
    assert caught.value.remedy and len(str(caught.value)) < 400


def test_a_bit_that_flipped_is_never_another_picture(copy: Path) -> None:
    """Wherever it is in the manifest: it is an error, or says the same."""
    text, random_bits = (copy / MANIFEST).read_bytes(), random.Random(0)
    bundle, refused = read_bundle(copy), 0
    for _ in range(300):
        flipped = bytearray(text)
        flipped[random_bits.randrange(len(text))] ^= 1 << random_bits.randrange(8)
        (copy / MANIFEST).write_bytes(flipped)
        try:
            assert read_bundle(copy, verify=False) == bundle
        except MmgenError:
            refused += 1
    assert refused > 250  # a blank may become another one


def test_a_manifest_without_a_checksum_is_an_older_one(copy: Path) -> None:
    record = json.loads((copy / MANIFEST).read_text())
    checksum = record.pop(CHECKSUM)
    (copy / MANIFEST).write_text(json.dumps(record))
    bundle = read_bundle(copy)
    record["defaults"]["guidance"] = 3.0
    (copy / MANIFEST).write_text(json.dumps({**record, CHECKSUM: checksum}))
    with pytest.raises(MmgenError, match=f"checksum, got {checksum[:16]}, wanted [0-9a-f]{{16}}; the file changed"):
        read_bundle(copy)
    assert bundle.defaults.guidance == 2.0


JSON: dict[str, tuple[bytes, str]] = {
    "deep": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply"),
    "digits": (b"1" + b"0" * 400, "a number of 401 digits"),
    "digits of one that is refused": (b"9" * (DIGITS + 1), f"a number of {DIGITS + 1} digits"),
    "beyond all numbers": (b"1e999", "the number 1e999"),
    "infinity": (b"[Infinity]", "the number Infinity"),
    "no number": (b"NaN", "the number NaN"),
    "half a letter": (b'"\\ud800"', r"the letter '\\ud800'"),
    "a terminal's orders": (b'{"a": ["\\u001b[2J"]}', r"the letter '\\x1b'"),
    "a name that ends": (b'{"a\\u0000b": 1}', r"the letter '\\x00'"),
    "no UTF-8": (b'"\xff"', "is not JSON"),
    "nothing": (b"", "is not JSON"),
}


@pytest.mark.parametrize(("content", "message"), JSON.values(), ids=JSON)
def test_what_no_file_of_ours_has_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(MmgenError, match=message) as caught:
        read_json(path)
    assert len(str(caught.value)) < 300


def test_what_is_no_file_or_too_large_is_not_read(tmp_path: Path) -> None:
    large, pipe = tmp_path / "large", tmp_path / "pipe"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    os.mkfifo(pipe)
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path, message in (
        (large, f"bytes, got {LARGEST + 1}"), (pipe, "it is a pipe or a device"), (tmp_path, "Is a directory"),
        (tmp_path / "zero", "a device"), (tmp_path / "none", "can't be read"), (Path("a\0b"), "can't be read"),
    ):  # fmt: skip
        with pytest.raises(MmgenError, match=message):
            read_json(path)
