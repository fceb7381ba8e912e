"""What ONNX Runtime has optimised, kept for the next start: never a stale or a damaged one, and never needed."""

import dataclasses
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import done

from mmgen.engines.cache import prune
from mmgen.runtime import Generator, load, optimised
from mmgen.runtime.build import key_of
from mmgen.runtime.bundle import Bundle, read_bundle
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.folders import lock_of, locked
from mmgen.runtime.optimised import DATA, FOLDER, GRAPH, SIDECAR, Identity, Optimised
from mmgen.runtime.ort import open_backend

pytest.importorskip("onnxruntime")
ASKED = {"prompt": "red apple", "label": 1, "steps": 2, "seed": 5}
PLAYED = {"condition", "timestep", "step", "decode"}
OWN = Identity("graph", "1.31.1", "commit", "avx2")


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Bundle:
    """A copy that nothing was optimised in."""
    folder = shutil.copytree(bundle_folder, tmp_path / "b.mmgen", ignore=shutil.ignore_patterns(FOLDER))
    return read_bundle(folder)


def play(bundle: Bundle) -> bytes:
    with load(bundle.folder, "ort-cpu", threads=1) as generator:
        return generator.generate(**ASKED).media.tobytes()


def plain(bundle: Bundle) -> bytes:
    """Without anything that was kept."""
    with Generator(bundle, open_backend(1)) as generator:
        return generator.generate(**ASKED).media.tobytes()


def folders(bundle: Bundle) -> dict[str, Path]:
    """By role; everything in the folder is one of them."""
    found = optimised.scan(bundle)
    assert sorted(path for path, _ in found) == sorted(bundle.path(FOLDER).iterdir())
    return {about.role: path for path, about in found if isinstance(about, Optimised)}


def written(bundle: Bundle) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in bundle.path(FOLDER).rglob("*")}


# Kept, and used again


def test_the_second_start_takes_what_the_first_one_left_and_makes_the_same_to_the_bit(bundle: Bundle) -> None:
    want = plain(bundle)
    assert not bundle.path(FOLDER).exists(), "an exporter's own run leaves nothing in a bundle"
    assert play(bundle) == want
    left = written(bundle)
    assert set(folders(bundle)) == PLAYED
    assert play(bundle) == want
    assert written(bundle) == left


def test_the_kept_graph_is_what_is_loaded(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    play(bundle)
    opened: list[Path] = []
    monkeypatch.setattr("mmgen.runtime.ort.OrtCpu._session", lambda self, graph, options: opened.append(graph))
    backend = open_backend(1, keep=True)
    with pytest.raises(AttributeError):  # there is no session
        backend.runner(bundle, "step")
    assert opened == [folders(bundle)["step"] / GRAPH]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Identity)])
def test_everything_that_decides_changes_the_key(field: str) -> None:
    other = 2 if field == "schema" else "other"
    assert key_of(dataclasses.replace(OWN, **{field: other})) != key_of(OWN)


def test_another_processor_has_graphs_of_its_own(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    want = play(bundle)
    monkeypatch.setattr(optimised, "processor", lambda: "another one")
    assert play(bundle) == want
    assert len(list(bundle.path(FOLDER).iterdir())) == 2 * len(PLAYED)


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
def test_what_is_damaged_is_made_again(
    bundle: Bundle, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    want = play(bundle)
    folder = folders(bundle)["step"]
    damage(folder)
    assert play(bundle) == want
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(folder) in warning and warning.endswith("; it is made again")
    caplog.clear()
    assert play(bundle) == want
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


def test_one_of_another_graph_is_not_taken(bundle: Bundle) -> None:
    want = play(bundle)
    found = folders(bundle)
    shutil.rmtree(found["step"])
    shutil.copytree(found["decode"], found["step"])
    assert play(bundle) == want
    assert set(folders(bundle)) == PLAYED


# Not kept


def test_a_place_that_cannot_be_written_costs_time_and_nothing_else(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    want = plain(bundle)
    bundle.path(FOLDER).write_text("not a folder")
    with caplog.at_level(logging.INFO, "mmgen"):
        assert play(bundle) == want
    assert "the step graph is optimised at each start" in caplog.text
    assert bundle.path(FOLDER).read_text() == "not a folder"


def test_a_full_disk_is_left_alone(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    want = plain(bundle)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    assert play(bundle) == want
    assert list(bundle.path(FOLDER).iterdir()) == []


def test_what_fails_half_way_leaves_nothing(bundle: Bundle) -> None:
    def make(graph: Path, weights: str) -> None:
        graph.write_bytes(b"half of i")
        raise MmgenError("ONNX Runtime failed")

    assert optimised.kept(bundle, "step", OWN, make) is None
    assert list(bundle.path(FOLDER).iterdir()) == []


def test_a_graph_that_nobody_verified_is_not_taken_for_the_manifests(bundle: Bundle) -> None:
    data = bundle.path(bundle.graphs["step"].data or "")
    flip(data)
    load(bundle.folder, "ort-cpu", verify=False).close()
    assert set(folders(bundle)) == PLAYED - {"step"}


def test_a_process_that_was_killed_leaves_nothing_that_is_used_or_stays(bundle: Bundle) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    play(bundle)
    folder = folders(bundle)["step"]
    partial = folder.with_name(f".{folder.name}.{dead.pid}.partial")
    folder.rename(partial)
    assert play(bundle) == plain(bundle)
    assert folders(bundle)["step"] == folder and not partial.exists()


# Two at once


def test_while_another_process_writes_a_graph_it_is_loaded_as_it_is(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    want = play(bundle)
    folder = folders(bundle)["step"]
    shutil.rmtree(folder)
    with locked(lock_of(folder), None), caplog.at_level(logging.INFO, "mmgen"):
        assert play(bundle) == want
    assert "the step graph is being optimised by another process" in caplog.text
    assert not folder.exists()


def test_processes_that_start_at_once_make_the_same(bundle: Bundle, tmp_path: Path) -> None:
    code = f"""
import sys
from mmgen.runtime import load
with load({str(bundle.folder)!r}, "ort-cpu", threads=1) as generator:
    sys.stdout.buffer.write(generator.generate(**{ASKED!r}).media.tobytes())
"""
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(3)]
    made = [process.communicate()[0] for process in started]
    assert made == [plain(bundle)] * 3
    assert set(folders(bundle)) == PLAYED


# Seen and cleared away


def test_pruning_removes_what_cannot_be_used_any_more(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    play(bundle)
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
    assert reasons == [f"made by ONNX Runtime {version}, and 99.0 is here"] * 2
    assert list(bundle.path(FOLDER).iterdir()) == []


def test_inspect_shows_them(bundle: Bundle) -> None:
    assert "optimised" not in done("inspect", str(bundle.folder)).stdout
    play(bundle)
    assert "optimised" in done("inspect", str(bundle.folder)).stdout
