"""Receipts 3 and 4 repeated from a bundle alone, without torch."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from manifests import edit

from mmgen.runtime import load
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.bundle import read_bundle, write_manifest
from mmgen.runtime.storage.golden import Golden, read_golden, write_golden
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import GOLDEN, Receipt
from mmgen.runtime.verify import EXACT_DB, compare_media, psnr, relative_rms, require, share, verify


@pytest.fixture
def copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle to break."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "copy.mmgen"))


def regild(folder: Path, **changes: object) -> None:
    """Change the golden and its hash in the manifest, as somebody would who wants to be believed."""
    golden = dataclasses.replace(read_golden(folder / GOLDEN), **changes)  # type: ignore[arg-type]
    write_golden(golden, folder / GOLDEN)
    write_manifest(
        dataclasses.replace(read_bundle(folder, verify=False), golden_sha256=sha256(folder / GOLDEN)), folder
    )


def test_a_good_bundle_passes_and_says_what_was_measured(bundle_folder: Path) -> None:
    receipts = verify(bundle_folder)
    assert {(r.level, r.graph) for r in receipts} == {(3, "loop"), (4, "decode"), (4, "loop")}
    trajectory = receipts[0]
    assert trajectory.limit is not None and 0 < trajectory.measured < trajectory.limit


def test_it_needs_no_torch(bundle_folder: Path) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "from mmgen.runtime.verify import verify; print(len(verify(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle_folder)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) >= 3


def test_a_golden_that_changed_on_the_disk_fails_by_its_hash(copy: Path) -> None:
    content = bytearray((copy / GOLDEN).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / GOLDEN).write_bytes(content)
    with pytest.raises(MmgenError, match=r"golden\.npz: sha256, got"):
        verify(copy)


def test_another_trajectory_fails_at_the_row_where_it_parts(copy: Path) -> None:
    trajectory = read_golden(copy / GOLDEN).trajectory.copy()
    trajectory[1] *= 2
    regild(copy, trajectory=trajectory)
    message = (
        r"receipt 3 \(trajectory\) failed: loop, relative RMS of latents after row 2 of \d+, got .*, wanted at most"
    )
    with pytest.raises(MmgenError, match=message):
        verify(copy)


def test_other_media_fail(copy: Path) -> None:
    regild(copy, media=np.roll(read_golden(copy / GOLDEN).media, 3, axis=1))
    with pytest.raises(MmgenError, match=r"receipt 4 \(media\) failed: decode, PSNR of media, got .*, wanted at least"):
        verify(copy)


def test_a_solver_with_other_evaluations_is_told_from_a_wrong_one(copy: Path) -> None:
    regild(copy, trajectory=read_golden(copy / GOLDEN).trajectory[:-1])
    with pytest.raises(MmgenError, match=r"evaluations, got \d+, wanted \d+; .*another version of the solver"):
        verify(copy)


def test_a_weight_that_changed_fails_even_with_its_hash_made_right(copy: Path) -> None:
    bundle = read_bundle(copy)
    step = bundle.graphs["step"]
    assert step.data is not None
    data = copy / step.data
    size = np.float16 if bundle.precision.policy == "fp16" else np.float32
    weights = np.fromfile(data, size)
    (-weights).tofile(data)
    edit(copy, lambda record: record["graphs"]["step"].update(data_sha256=sha256(data)))
    with pytest.raises(MmgenError, match="receipt 3"):
        verify(copy)


def test_a_bundle_without_a_golden(copy: Path) -> None:
    write_manifest(dataclasses.replace(read_bundle(copy), golden_sha256=None), copy)
    with pytest.raises(MmgenError, match=r"has no golden\.npz; export the bundle again"):
        verify(copy)


def test_a_golden_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((3, 2, 4), np.float32)
    golden = Golden(
        {"prompt": ["a", "b"], "state": latents[0]}, "ddim", 3, 4.0, "schedule", 0, latents[0], latents, latents[1],
        np.arange(8, dtype=np.uint8).reshape(2, 4), np.arange(2), {"prompt": "c", "state": latents[1]},
    )  # fmt: skip
    for name in ("a.npz", "b.npz"):
        write_golden(golden, tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = read_golden(tmp_path / "a.npz")
    for field in dataclasses.fields(golden):
        if field.name not in ("conditions", "negative"):
            assert np.array_equal(getattr(read, field.name), getattr(golden, field.name)), field.name
    assert read.conditions["prompt"] == ["a", "b"] and np.array_equal(read.conditions["state"], latents[0])
    assert read.negative["prompt"] == "c" and np.array_equal(read.negative["state"], latents[1])
    assert read.request["count"] is None and read.request["conditions"] == read.conditions


def test_a_golden_from_before_negative_conditions_is_read(bundle_folder: Path, tmp_path: Path) -> None:
    golden = read_golden(bundle_folder / GOLDEN)
    with np.load(bundle_folder / GOLDEN) as file:
        arrays = dict(file)
    request = json.loads(str(arrays["request"]))
    del request["negative"]
    np.savez(tmp_path / GOLDEN, **arrays | {"request": np.array(json.dumps(request))})
    read = read_golden(tmp_path / GOLDEN)
    assert read.conditions == golden.conditions and read.negative == golden.negative == {}


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut"])
def test_a_damaged_golden_is_one_clear_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / GOLDEN).write_bytes(content)
    with pytest.raises(MmgenError, match="can't be read as a golden"):
        read_golden(tmp_path / GOLDEN)


STRANGE = {  # arrays in the place of those in a golden, and what is said of them
    "trajectory": (np.float32(1), r"trajectory, got float32 \(\), wanted float32 \(1, 2, 4, 8, 8\)"),
    "other": (np.zeros((0, 4, 8, 8), np.float32), r"trajectory, got .*, wanted float32 \(6, 1, 4, 8, 8\)"),
    "noise": (np.zeros((2, 4, 8, 8)), r"noise, got float64 .*, wanted float32 \(2, 4, 8, 8\)"),
    "codes": (np.zeros(3), r"codes, got float64 \(3,\), wanted int64 \(2, 8, 8\)"),
    "media": (np.zeros((2, 1), np.uint8), r"media, got uint8 \(2, 1\), wanted uint8 \(2, 16, 16, 3\)"),
    "strange": (np.zeros(2), "it has an array 'strange'"),
}


def regild_arrays(folder: Path, **arrays: object) -> None:
    with np.load(folder / GOLDEN) as file:
        before = dict(file)
    np.savez(folder / GOLDEN, **before | arrays)
    write_manifest(
        dataclasses.replace(read_bundle(folder, verify=False), golden_sha256=sha256(folder / GOLDEN)), folder
    )


@pytest.mark.parametrize("name", STRANGE)
def test_arrays_of_another_bundle_are_named(copy: Path, name: str) -> None:
    array, message = STRANGE[name]
    regild_arrays(copy, **{name: array})
    with pytest.raises(MmgenError, match=rf"golden\.npz.*{message}.*export the bundle again"):
        verify(copy)


REQUEST = {
    "conditions": {"prompt": ["red", "blue"], "label": [2, 7]}, "solver": "ddim", "steps": 6, "guidance": 2.0,
    "sigmas": "schedule", "seed": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ('"x"', "request, got 'x', wanted an object"),
        ("[" * 100_000, "can't be read as a golden"),
        ("1" * 5000, "can't be read as a golden"),
        ("", "can't be read as a golden"),
        ({**REQUEST, "solver": {}}, "solver, got {}, wanted a name"),
        ({**REQUEST, "steps": 10**9}, "steps, got 1000000000, wanted at most 100000"),
        ({**REQUEST, "steps": True}, "steps, got True, wanted a whole number"),
        ({**REQUEST, "guidance": 10**400}, r"guidance, got 1000.*\.\.\., wanted a finite number"),
        ({**REQUEST, "guidance": float("nan")}, "guidance, got nan, wanted a finite number"),
        ({**REQUEST, "conditions": 5}, "conditions, got 5, wanted an object"),
        ({**REQUEST, "more": 5}, "'more', got a field too many"),
        ({name: value for name, value in REQUEST.items() if name != "seed"}, "'seed', got no such field"),
        ({**REQUEST, "solver": "magic"}, "the request in .* is none of this bundle .*solver, got 'magic'"),
        ({**REQUEST, "conditions": {"prompt": "red"}}, "is none of this bundle .*noise, got"),
    ],
)
def test_a_request_that_is_none_is_named(copy: Path, request_: object, message: str) -> None:
    text = request_ if isinstance(request_, str) else json.dumps(request_)
    regild_arrays(copy, request=np.array(text))
    with pytest.raises(MmgenError, match=message) as caught:
        verify(copy)
    assert "export the bundle again" in str(caught.value) and len(str(caught.value)) < 400


def test_a_golden_of_another_number_of_samples_is_refused_before_all_evaluations_run(copy: Path) -> None:
    regild_arrays(copy, request=np.array(json.dumps({**REQUEST, "steps": 900})))
    with pytest.raises(MmgenError, match="solver ddim with 900 steps: evaluations, got 900, wanted 6"):
        verify(copy)


def test_figures() -> None:
    one = np.ones((2, 3), np.float32)
    assert relative_rms(1.5 * one, one) == pytest.approx(0.5)
    assert relative_rms(one, 0 * one) == pytest.approx(6**0.5)
    assert np.isnan(relative_rms(np.nan * one, one)) and relative_rms(np.inf * one, one) == np.inf
    grey = np.full((2, 2, 3), 128, np.uint8)
    assert psnr(grey, grey) == EXACT_DB
    assert psnr(grey + 1, grey) == pytest.approx(48.13, abs=0.01)
    assert share(np.array([1, 2, 3, 4]), np.array([1, 2, 0, 4])) == 0.75


def test_nan_never_passes_and_reported_figures_always_do() -> None:
    assert not Receipt(3, "loop", "relative RMS", float("nan"), 0.1).passed
    assert not Receipt(4, "loop", "PSNR", float("nan"), 35.0, at_least=True).passed
    assert Receipt(4, "loop", "PSNR", 3.0, None, at_least=True).passed
    with pytest.raises(MmgenError, match=r"got nan, wanted at most 0\.1"):
        require([Receipt(3, "loop", "relative RMS", float("nan"), 0.1, "latents")])


def test_media_are_compared_where_the_codes_agree() -> None:
    wanted = np.zeros((2, 4, 4, 3), np.uint8)
    codes = np.zeros((2, 4, 4), np.int64)
    media, found = wanted.copy(), codes.copy()
    media[1], found[1, 0, 0] = 255, 1  # one code flips, and with it a whole picture
    of_codes, of_media = compare_media(4, "decode", "fp32", media, wanted, found, codes)
    assert of_codes.measured == 31 / 32 and not of_codes.passed
    assert of_media.measured == EXACT_DB and of_media.passed
    found[0, 0, 0] = 1  # no sample is left to hide behind
    assert not compare_media(4, "decode", "fp32", media, wanted, found, codes)[1].passed


def test_verify_closes_what_it_opens(bundle_folder: Path) -> None:
    with load(bundle_folder) as generator:
        verify(bundle_folder, generator.backend)  # a generator beside it is none of its business
