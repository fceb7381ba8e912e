"""Links that somebody put where mmgen writes, deletes or reads: nothing behind them is touched.

What the user names may be a link, and works as what it leads to.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from commands import done, mmgen
from fake_builds import ORIN, fill, identity

from mmgen.engines import cache
from mmgen.engines.compile import save_timing_cache, timing_cache
from mmgen.export.base.place import placed
from mmgen.runtime import load
from mmgen.runtime.backends.ort.cpu import optimise
from mmgen.runtime.backends.tensorrt.runtime_cache import RuntimeCache
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store, optimised
from mmgen.runtime.builds.engine_build import ENGINES
from mmgen.runtime.cli.save import Samples, destination
from mmgen.runtime.files import unfinished
from mmgen.runtime.files.atomic import whole_file
from mmgen.runtime.files.folders import recover, whole_folder
from mmgen.runtime.files.locks import locked
from mmgen.runtime.storage.bundle import read_bundle, write_manifest
from mmgen.runtime.storage.schema import MANIFEST, Bundle, Media

PRECIOUS = "precious"
ASKED = {"prompt": "red apple", "label": 1, "steps": 2, "seed": 5}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder that nobody named, with files as a bundle's folders have them."""
    folder = tmp_path / "elsewhere"
    for name in ("file", "0" * 32 + "/file", f".{'1' * 32}.1.partial/file", f".{'2' * 32}.1.old/file"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(PRECIOUS)
    return folder


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Bundle:
    ignored = shutil.ignore_patterns(ENGINES, optimised.FOLDER)
    return read_bundle(shutil.copytree(bundle_folder, tmp_path / "b.mmgen", ignore=ignored))


def seen(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


# Folders inside a bundle


def build(bundle: Bundle) -> object:
    with cache.building(bundle, identity(bundle)) as folder:
        return fill(folder, identity(bundle))


def key(bundle: Bundle) -> str:
    return identity(bundle).key


def optimised_key(bundle: Bundle) -> str:
    return optimised._folder(bundle, optimised._identify(bundle, "step", onnxruntime)).name


USES: dict[str, tuple[Callable[[Bundle], str], Callable[[Bundle], object]]] = {
    "engines, build": (lambda b: ENGINES, build),
    "engines, find what was built": (lambda b: ENGINES, lambda b: cache.find(b, identity(b))),
    "engines, timings": (lambda b: ENGINES, lambda b: cache.timing_cache(b, ORIN)),
    "engines, prune": (lambda b: ENGINES, cache.prune),
    "engines, inspect": (lambda b: ENGINES, engine_store.scan),
    "engines, play": (lambda b: ENGINES, lambda b: engine_store.find(b, ORIN)),
    "a build, build": (lambda b: f"{ENGINES}/{key(b)}", build),
    "a build, prune": (lambda b: f"{ENGINES}/{key(b)}", cache.prune),
    "a build, read": (lambda b: f"{ENGINES}/{key(b)}", lambda b: engine_store.read_build(b.path(ENGINES) / key(b))),
    "timings, build": (lambda b: f"{ENGINES}/timing", lambda b: cache.timing_cache(b, ORIN)),
    "timings, prune": (lambda b: f"{ENGINES}/timing", lambda b: cache.prune(b, [ORIN])),
    "optimised, build": (lambda b: optimised.FOLDER, lambda b: optimise(b, lambda *_: None)),
    "optimised, prune": (lambda b: optimised.FOLDER, cache.prune),
    "optimised, inspect": (lambda b: optimised.FOLDER, optimised.scan),
    "a graph, build": (lambda b: f"{optimised.FOLDER}/{optimised_key(b)}", lambda b: optimise(b, lambda *_: None)),
    "a graph, prune": (lambda b: f"{optimised.FOLDER}/{optimised_key(b)}", cache.prune),
    "the lock of a build": (lambda b: f"{ENGINES}/.{key(b)}.lock", build),
    "the lock of a build, prune": (lambda b: f"{ENGINES}/.{key(b)}.lock", cache.prune),
    "the lock of a graph": (
        lambda b: f"{optimised.FOLDER}/.{optimised_key(b)}.lock",
        lambda b: optimise(b, lambda *_: None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("leads_to", ["elsewhere", "nowhere"])
@pytest.mark.parametrize("use", USES)
def test_a_link_in_a_bundle_is_refused_by_its_name(bundle: Bundle, elsewhere: Path, use: str, leads_to: str) -> None:
    where, work = USES[use]
    planted = link(bundle.path(where(bundle)), elsewhere if leads_to == "elsewhere" else elsewhere.parent / "new")
    before = seen(elsewhere)
    with pytest.raises(MmgenError, match=f"^{planted} is a link"):
        work(bundle)
    assert planted.is_symlink() and seen(elsewhere) == before and not (elsewhere.parent / "new").exists()


def test_optimised_graphs_behind_a_link_are_not_used_and_not_needed(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    optimise(bundle, lambda *_: None)
    bundle.path(optimised.FOLDER).rename(bundle.folder.parent / "graphs")
    link(bundle.path(optimised.FOLDER), bundle.folder.parent / "graphs")
    load(bundle.folder, "ort-cpu", threads=1).close()
    assert f"{bundle.path(optimised.FOLDER)} is a link, and a bundle's folders must not be links, so it" in caplog.text


def test_a_bundle_with_a_build_behind_a_link_says_which_one(bundle: Bundle) -> None:
    build(bundle)
    folder = bundle.path(ENGINES) / key(bundle)
    folder.rename(bundle.folder.parent / folder.name)
    link(folder, bundle.folder.parent / folder.name)
    with pytest.raises(MmgenError, match=rf"has no engines \(skipped: {folder} is a link\); mmgen build"):
        engine_store.find(bundle, ORIN)
    assert f"{folder.name} is a link" in " ".join(done("inspect", str(bundle.folder)).output.split())


def test_a_command_says_it_in_one_line(bundle: Bundle, elsewhere: Path) -> None:
    planted = link(bundle.path(optimised.FOLDER), elsewhere)
    for arguments in (("build", "--target", "cpu"), ("build", "--prune"), ("inspect",)):
        said = mmgen(arguments[0], str(bundle.folder), *arguments[1:])
        assert said.exit_code == 1
        assert said.stderr.splitlines()[-1].startswith(f"Error: {planted} is a link, and a bundle's folders")


def test_engines_behind_a_link_do_not_go_over_to_a_new_bundle_and_stay_where_they_are(
    tmp_path: Path, elsewhere: Path
) -> None:
    out = tmp_path / "a.mmgen"
    out.mkdir()
    (out / MANIFEST).write_text("older")
    link(out / ENGINES, elsewhere)
    before = seen(elsewhere)
    with placed(out, 0) as folder:
        (folder / MANIFEST).write_text("newer")
    assert seen(elsewhere) == before and [path.name for path in out.iterdir()] == [MANIFEST]


# Partial files and folders, and what is left of them


@pytest.fixture
def foreseen(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """The partial name beside a path, as if somebody could guess it."""

    def name(path: Path, kind: str = "partial") -> Path:
        return path.with_name(f".{path.name}.{os.getpid()}.{'ab' * 8}.{kind}")

    monkeypatch.setattr(unfinished, "beside", name)
    return name


WRITERS: dict[str, tuple[Callable[[Bundle], Path], Callable[[Bundle], object]]] = {
    "the manifest": (lambda b: b.path(MANIFEST), lambda b: write_manifest(b, b.folder)),
    "a picture": (lambda b: b.path("x.png"), lambda b: _save(str(b.path("x.png")))),
    "a picture in a folder": (lambda b: b.path("000-red.png"), lambda b: _save(f"{b.folder}/")),
    "timings": (lambda b: b.path(f"{ENGINES}/timing/t"), lambda b: _kept_timings(b.path(f"{ENGINES}/timing/t"))),
    "kernels": (lambda b: b.path(f"{ENGINES}/kernels"), lambda b: _kernels(b.path(f"{ENGINES}/kernels"))),
}


def _save(output: str) -> None:
    with destination(output, Media("image", (2, 2, 3), "uint8")) as save:
        save(Samples(np.zeros((1, 2, 2, 3), np.uint8), ("red",), {}))


class Config:
    """TensorRT's, with caches that hold a few bytes."""

    def create_timing_cache(self, content: bytes) -> "Config":
        return self

    create_runtime_cache = set_timing_cache = set_runtime_cache = deserialize = lambda self, *_: self

    def get_timing_cache(self) -> "Config":
        return self

    def serialize(self) -> bytes:
        return b"times"


def _kept_timings(path: Path) -> None:
    def warning(text: str) -> None:
        raise MmgenError(text)

    timing_cache(Config(), path, warning)
    save_timing_cache(Config(), path, warning)


def _kernels(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    RuntimeCache(Config(), path).save()


@pytest.mark.parametrize("writer", WRITERS)
def test_no_partial_file_is_written_through_a_link(
    bundle: Bundle, elsewhere: Path, foreseen: Callable[[Path], Path], writer: str, caplog: pytest.LogCaptureFixture
) -> None:
    where, write = WRITERS[writer]
    planted = link(foreseen(where(bundle)), elsewhere / "file")
    try:
        write(bundle)
        said = caplog.text  # kernels can be compiled again
    except MmgenError as error:
        said = str(error)
    assert "can't be written (File exists)" in said
    assert planted.is_symlink() or not os.path.lexists(planted)
    assert (elsewhere / "file").read_text() == PRECIOUS


@pytest.mark.parametrize("writer", WRITERS)
def test_a_name_that_could_be_guessed_is_not_used(bundle: Bundle, elsewhere: Path, writer: str) -> None:
    where, write = WRITERS[writer]
    for label in (f"{os.getpid()}", f"{os.getpid()}.partial"):
        link(where(bundle).with_name(f".{where(bundle).name}.{label}"), elsewhere / "file")
    write(bundle)
    assert where(bundle).is_file() and (elsewhere / "file").read_text() == PRECIOUS


@pytest.mark.parametrize("writer", [name for name in WRITERS if name != "a picture"])
def test_a_link_in_the_place_of_a_file_that_nobody_named_is_replaced(
    bundle: Bundle, elsewhere: Path, writer: str
) -> None:
    where, write = WRITERS[writer]
    where(bundle).unlink(missing_ok=True)
    link(where(bundle), elsewhere / "file")
    write(bundle)
    assert where(bundle).is_file() and not where(bundle).is_symlink()
    assert (elsewhere / "file").read_text() == PRECIOUS


def test_no_partial_folder_is_behind_a_link(tmp_path: Path, elsewhere: Path, foreseen: Callable[[Path], Path]) -> None:
    before = seen(elsewhere)
    link(foreseen(tmp_path / "out"), elsewhere)
    with pytest.raises(MmgenError, match="File exists"), whole_folder(tmp_path / "out"):
        pytest.fail("the block was entered")
    assert seen(elsewhere) == before


@pytest.mark.parametrize("kind", ["partial", "old"])
def test_a_link_is_no_leftover(tmp_path: Path, elsewhere: Path, kind: str) -> None:
    before = seen(elsewhere)
    planted = link(tmp_path / f".out.{os.getpid()}.{'0' * 16}.{kind}", elsewhere)
    recover(tmp_path / "out", carry=("0" * 32,))
    recover(tmp_path / "out", carry=("0" * 32,), alone=True)
    with whole_file(tmp_path / "out") as write:
        write(b"content")
    assert planted.is_symlink() and seen(elsewhere) == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give files away")
def test_what_somebody_else_put_there_is_no_leftover(tmp_path: Path) -> None:
    """Or a bundle that was set aside could be theirs."""
    (planted := tmp_path / f".a.mmgen.{os.getpid()}.{'0' * 16}.old").mkdir()
    os.chown(planted, 4711, 4711)
    recover(tmp_path / "a.mmgen")
    assert planted.is_dir() and not (tmp_path / "a.mmgen").exists()
    os.chown(tmp_path, 4711, 4711)  # the folder's owner may do anything in it
    recover(tmp_path / "a.mmgen")
    assert (tmp_path / "a.mmgen").is_dir()


def test_a_lock_is_no_pipe_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError), locked(tmp_path / "lock", None):
        pytest.fail("the block was entered")


# What the user names


def test_a_picture_that_was_named_by_a_link_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    named = link(tmp_path / "link.png", tmp_path / "there" / "x.png")
    _save(str(named))
    assert named.is_symlink() and (tmp_path / "there" / "x.png").is_file()
    folder = link(tmp_path / "folder", tmp_path / "there")
    _save(f"{folder}/")
    assert folder.is_symlink() and (tmp_path / "there" / "000-red.png").is_file()


def test_a_report_that_was_named_by_a_link_is_where_it_leads(bundle: Bundle, tmp_path: Path, elsewhere: Path) -> None:
    (tmp_path / "there").mkdir()
    asked = {"--output": "a.json", "--samples": "a.jsonl", "--report": ""}
    named = {option: link(tmp_path / f"link{option}", tmp_path / "there" / name) for option, name in asked.items()}
    link(tmp_path / "there" / "index.html", elsewhere / "file")
    few = ("--runs", "1", "--warmup", "0", "--steps", "1", "--starts", "0", "--backend", "ort-cpu")
    options = [text for option, path in named.items() for text in (option, str(path))]
    done("bench", str(bundle.folder), *few, *options)
    assert all(path.is_symlink() for path in named.values())
    assert json.loads((tmp_path / "there" / "a.json").read_text()) and (tmp_path / "there" / "a.jsonl").read_text()
    assert "<html" in (tmp_path / "there" / "index.html").read_text()
    assert (elsewhere / "file").read_text() == PRECIOUS, "the report's folder was named, and not the files in it"


def test_a_bundle_may_be_named_by_a_link(bundle: Bundle, tmp_path: Path) -> None:
    named = read_bundle(link(tmp_path / "link.mmgen", bundle.folder))
    build(named)
    optimise(named, lambda *_: None)
    load(named.folder, "ort-cpu", threads=1).close()
    assert engine_store.find(named, ORIN) and cache.prune(named) == []
    with placed(named.folder, 0) as folder:
        (folder / MANIFEST).write_text("newer")
    assert named.folder.is_symlink() and bundle.path(MANIFEST).read_text() == "newer"
    assert bundle.path(ENGINES).is_dir()
