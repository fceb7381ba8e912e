"""What ONNX Runtime has optimised, kept for later starts: never a stale or a damaged one, and never needed."""

import dataclasses
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from commands import done, mmgen

from mmgen.engines.cache import prune
from mmgen.runtime import load
from mmgen.runtime.backends.ort.cpu import OrtCpu, optimise
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import optimised
from mmgen.runtime.builds.identity import key_of
from mmgen.runtime.builds.optimised import DATA, FOLDER, GRAPH, SIDECAR, Identity, Optimised
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Bundle

ASKED = {"prompt": "red apple", "label": 1, "steps": 2, "seed": 5}
OWN = Identity("graph", "1.31.1", "commit", "avx2")


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Bundle:
    """A copy that nothing was optimised in."""
    folder = shutil.copytree(bundle_folder, tmp_path / "b.mmgen", ignore=shutil.ignore_patterns(FOLDER))
    return read_bundle(folder)


def play(bundle: Bundle) -> bytes:
    with load(bundle.folder, "ort-cpu", threads=1) as generator:
        return generator.generate(**ASKED).media.tobytes()


def build(bundle: Bundle) -> list[tuple[Path, bool]]:
    return optimise(bundle, lambda *_: None)


def never() -> None:
    raise AssertionError("nobody else makes it")


def folders(bundle: Bundle) -> dict[str, Path]:
    """By role; everything in the folder is one of them."""
    found = optimised.scan(bundle)
    assert sorted(path for path, _ in found) == sorted(bundle.path(FOLDER).iterdir())
    return {about.role: path for path, about in found if isinstance(about, Optimised)}


def written(bundle: Bundle) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in bundle.path(FOLDER).rglob("*")}


# Made when asked for, and used then


def test_what_was_built_is_loaded_and_makes_the_same_to_the_bit(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = play(bundle)
    assert not bundle.path(FOLDER).exists(), "to play leaves nothing in a bundle"
    made = json.loads(done("build", str(bundle.folder), "--target", "cpu", "--json").stdout)["optimised"]
    assert {(Path(each["folder"]), each["reused"]) for each in made} == {(f, False) for f in folders(bundle).values()}
    assert set(folders(bundle)) == set(bundle.graphs)
    opened: list[Path] = []
    session = OrtCpu.session
    monkeypatch.setattr(OrtCpu, "session", lambda self, graph, o: opened.append(graph) or session(self, graph, o))
    left = written(bundle)
    assert play(bundle) == want
    assert opened == [folders(bundle)[role] / GRAPH for role in ("condition", "timestep", "step", "decode")]
    assert written(bundle) == left


def test_what_is_there_is_not_made_again(bundle: Bundle) -> None:
    build(bundle)
    left = written(bundle)
    assert "reused" in done("build", str(bundle.folder), "--target", "cpu").stdout
    load(bundle.folder, "ort-cpu", build=True).close()
    assert written(bundle) == left


def test_load_makes_them_when_it_is_told_to(bundle: Bundle) -> None:
    load(bundle.folder, "ort-cpu", build=True).close()
    assert set(folders(bundle)) == set(bundle.graphs)


@pytest.mark.parametrize("more", [("--target", "host"), ("--workspace", "64"), ("--axis", "B=1")])
def test_a_processor_has_no_options_of_tensorrt(bundle: Bundle, more: tuple[str, str]) -> None:
    said = mmgen("build", str(bundle.folder), "--target", "cpu", *more)
    assert said.exit_code == 2 and "--target cpu goes with no other target" in said.stderr


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Identity)])
def test_everything_that_decides_changes_the_key(field: str) -> None:
    other = OWN.schema + 1 if field == "schema" else "other"
    assert key_of(dataclasses.replace(OWN, **{field: other})) != key_of(OWN)


def test_another_processor_has_graphs_of_its_own(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle)
    monkeypatch.setattr(optimised, "processor", lambda: "another one")
    assert optimised.find(bundle, "step", onnxruntime) is None
    build(bundle)
    assert len(list(bundle.path(FOLDER).iterdir())) == 2 * len(bundle.graphs)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped bit in the weights": lambda folder: flip(folder / DATA),
    "cut short": lambda folder: (folder / GRAPH).write_bytes((folder / GRAPH).read_bytes()[:-9]),
    "weights gone": lambda folder: (folder / DATA).unlink(),
    "sidecar is not JSON": lambda folder: (folder / SIDECAR).write_text("{"),
    "sidecar of another version": lambda folder: (folder / SIDECAR).write_text("{}"),
    "no sidecar": lambda folder: (folder / SIDECAR).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_is_not_used_and_can_be_made_again(
    bundle: Bundle, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    want = play(bundle)
    build(bundle)
    folder = folders(bundle)["step"]
    damage(folder)
    assert play(bundle) == want
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(folder) in warning
    assert warning.endswith(f"so it isn't used; mmgen build {bundle.folder} --target cpu makes it again")
    assert [reused for made, reused in build(bundle) if made == folder] == [False]
    caplog.clear()
    assert play(bundle) == want
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_one_of_another_graph_is_not_taken(bundle: Bundle) -> None:
    build(bundle)
    found = folders(bundle)
    shutil.rmtree(found["step"])
    shutil.copytree(found["decode"], found["step"])
    assert optimised.find(bundle, "step", onnxruntime) is None


def test_what_onnx_runtime_cannot_load_is_not_used(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    want = play(bundle)
    optimised.make(bundle, "step", onnxruntime, lambda graph, weights: graph.write_bytes(b"no graph"), never)
    assert play(bundle) == want
    assert "so it isn't used" in caplog.text and str(folders(bundle)["step"]) in caplog.text


# Not made


def test_a_place_that_cannot_be_written_is_one_clear_error(bundle: Bundle) -> None:
    bundle.path(FOLDER).write_text("not a folder")
    with pytest.raises(MmgenError, match=r"optimised can't be written \(.*\); copy the bundle to a place"):
        build(bundle)
    assert play(bundle) and bundle.path(FOLDER).read_text() == "not a folder"


def test_a_full_disk_is_said_and_left_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    with pytest.raises(MmgenError, match=r"free space in .*, got 0 KiB, wanted \d+ [KM]iB"):
        build(bundle)
    assert list(bundle.path(FOLDER).iterdir()) == []


LIMITED = """
import resource
from mmgen.runtime.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main()
"""


def test_a_disk_that_fills_up_while_a_graph_is_written_is_said_and_leaves_nothing(bundle: Bundle) -> None:
    pytest.importorskip("resource", reason="there are no such limits here")
    command = [sys.executable, "-c", LIMITED, "build", str(bundle.folder), "--target", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    said = f"Error: {bundle.path(FOLDER)}: ONNX Runtime can't write there what it makes of the graph condition"
    assert ran.returncode == 1 and ran.stderr.splitlines()[-1].startswith(f"{said}; make room")
    assert list(bundle.path(FOLDER).iterdir()) == []


def test_what_fails_half_way_leaves_nothing(bundle: Bundle) -> None:
    def write(graph: Path, weights: str) -> None:
        graph.write_bytes(b"half of i")
        raise MmgenError("ONNX Runtime failed")

    with pytest.raises(MmgenError, match="ONNX Runtime failed"):
        optimised.make(bundle, "step", onnxruntime, write, never)
    assert list(bundle.path(FOLDER).iterdir()) == []


def test_a_graph_that_changed_since_the_bundle_was_read_is_not_kept(bundle: Bundle) -> None:
    flip(bundle.path(bundle.graphs["step"].data or ""))
    with pytest.raises(MmgenError, match=r"step\.onnx\.data is not the manifest's"):
        build(bundle)
    assert "step" not in folders(bundle)


def test_a_process_that_was_killed_leaves_nothing_that_is_used_or_stays(bundle: Bundle) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    build(bundle)
    folder = folders(bundle)["step"]
    partial = folder.with_name(f".{folder.name}.{dead.pid}.partial")
    folder.rename(partial)
    assert optimised.find(bundle, "step", onnxruntime) is None
    build(bundle)
    assert folders(bundle)["step"] == folder and not partial.exists()


# Two at once


def test_processes_that_build_at_once_build_once(bundle: Bundle) -> None:
    code = "from mmgen.runtime.cli.main import main; main()"
    command = [sys.executable, "-c", code, "build", str(bundle.folder), "--target", "cpu", "--json"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(3)]
    reused = [each["reused"] for p in started for each in json.loads(p.communicate()[0])["optimised"]]
    assert reused.count(False) == len(bundle.graphs) == len(folders(bundle))


# Seen and cleared away


def test_pruning_removes_what_cannot_be_used_any_more(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle)
    found = folders(bundle)
    version = next(about.identity.onnxruntime for _, about in optimised.scan(bundle) if isinstance(about, Optimised))
    assert prune(bundle, onnxruntime=version) == [] and prune(bundle) == []
    flip(found["decode"] / DATA)
    changed = dataclasses.replace(bundle.graphs["timestep"], sha256="0" * 64)
    newer = dataclasses.replace(bundle, graphs={**bundle.graphs, "timestep": changed})
    removed = {item.path: item.reason for item in prune(newer, onnxruntime=version)}
    assert removed == {
        found["decode"]: f"{found['decode'] / DATA} is damaged",
        found["timestep"]: "made from another timestep graph",
    }
    with monkeypatch.context() as patch:
        patch.setattr(optimised, "processor", lambda: "another one")
        assert prune(bundle, onnxruntime="99.0") == [], "these are not this machine's"
    reasons = [item.reason for item in prune(bundle, onnxruntime="99.0")]
    assert reasons == [f"made by ONNX Runtime {version}, and 99.0 is here"] * (len(bundle.graphs) - 2)
    assert list(bundle.path(FOLDER).iterdir()) == []


def test_inspect_shows_them(bundle: Bundle) -> None:
    assert "optimised" not in done("inspect", str(bundle.folder)).stdout
    build(bundle)
    assert "optimised" in done("inspect", str(bundle.folder)).stdout
