"""A process that is killed, at whatever call: what was there is there whole, or what was to be; and nothing stays."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_builds import fill, flip, identity
from killed import at_every_call
from tree import PYTHON_PATH

from mmgen.engines import cache
from mmgen.export.base.place import placed
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files import folders
from mmgen.runtime.files.atomic import whole_file
from mmgen.runtime.storage.bundle import read_bundle

ENGINES = {"engines/key/step.engine": "compiled", "engines/key/build.json": "engine", "engines/timing/t": "times"}
OLDER = {"bundle.json": "older", "graphs/step.onnx": "older", "gone.npz": "older", **ENGINES}
NEWER = {"bundle.json": "newer", "graphs/step.onnx": "newer", "nulls/new.npy": "newer"}

CALLS = "rename,renameat,renameat2,link,linkat,symlink,symlinkat,mkdir,mkdirat,rmdir,unlink,unlinkat,fsync"


def put(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def beside(out: Path) -> list[str]:
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def again(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def replace(out: Path) -> None:
    with placed(out, 0) as folder:
        put(folder, NEWER)


# A bundle that is replaced


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_at_every_moment_there_is_the_older_bundle_or_the_newer_with_its_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    out = tmp_path / "w" / "a.mmgen"
    if not folders.exchange(*map(_made, (tmp_path / "one", tmp_path / "other"))):
        pytest.skip("folders can't change places here")
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(1, "no links")))

    found = []
    for _ in at_every_call(lambda: replace(out), lambda: (again(out.parent), put(out, OLDER))):
        assert content_of(out) in (OLDER, NEWER | ENGINES)
        found.append(content_of(out)["bundle.json"])
        with pytest.raises(KeyboardInterrupt), placed(out, 0):  # what comes next clears up
            raise KeyboardInterrupt
        assert beside(out) == [] and content_of(out) in (OLDER, NEWER | ENGINES)
    assert found[0] == "older" and found[-2:] == ["newer", "newer"] and found == sorted(found, reverse=True)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_where_folders_cannot_change_places_nothing_is_lost_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two renames the older one lies beside it, and whoever reads it next puts it back."""
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    out = tmp_path / "w" / "a.mmgen"
    absent = 0
    for _ in at_every_call(lambda: replace(out), lambda: (again(out.parent), put(out, OLDER))):
        if not out.exists():
            absent += 1
            assert folders.put_back(out)
            assert content_of(out) == OLDER
        assert content_of(out) in (OLDER, NEWER | ENGINES)
        with pytest.raises(KeyboardInterrupt), placed(out, 0):
            raise KeyboardInterrupt
        assert beside(out) == [] and content_of(out) in (OLDER, NEWER | ENGINES)
    assert absent == 1


def test_a_bundle_that_is_not_there_before_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "w" / "a.mmgen"
    for _ in at_every_call(lambda: replace(out), lambda: again(out.parent)):
        assert not out.exists() or content_of(out) == NEWER
        replace(out)
        assert beside(out) == [] and content_of(out) == NEWER


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from test_kills import replace
replace(Path(sys.argv[2]))
print("done")
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_so_it_is_at_every_system_call(tmp_path: Path) -> None:
    out = tmp_path / "w" / "a.mmgen"
    for number in range(1, 300):
        again(out.parent)
        put(out, OLDER)
        inject = f"inject={CALLS}:signal=KILL:when={number}"
        command = ["strace", "-f", "-o", os.devnull, "-e", f"trace={CALLS}", "-e", inject]
        python = [sys.executable, "-B", "-c", SCRIPT, f"{Path(__file__).parent}:{PYTHON_PATH}", str(out)]
        ran = subprocess.run([*command, *python], capture_output=True, text=True, check=False)
        if "ptrace" in ran.stderr:
            pytest.skip("strace may not look at processes here")
        assert content_of(out) in (OLDER, NEWER | ENGINES), f"call {number}"
        replace(out)
        assert beside(out) == [] and content_of(out) == NEWER | ENGINES
        if ran.stdout.strip() == "done":
            assert number > 10, ran.stderr
            return
    raise AssertionError("it never ends")


def test_a_bundle_that_was_set_aside_is_there_again_when_it_is_read(bundle_copy: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    aside = bundle_copy.with_name(f".{bundle_copy.name}.{dead.pid}.{'0' * 16}.old")
    bundle_copy.rename(aside)
    link = bundle_copy.with_name("link.mmgen")
    link.symlink_to(bundle_copy.name)
    assert read_bundle(link).name and not aside.exists()
    mine = bundle_copy.with_name(f".{bundle_copy.name}.{os.getppid()}.{'0' * 16}.old")  # alive
    bundle_copy.rename(mine)
    with pytest.raises(MmgenError, match="is not there; make one"):
        read_bundle(bundle_copy)
    assert mine.is_dir()


@pytest.mark.parametrize("recovers", [True, False], ids=["killed while it recovers", "killed while it replaces"])
def test_what_is_half_deleted_is_never_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recovers: bool
) -> None:
    """Not even where somebody takes the new bundle away after that."""
    monkeypatch.setattr(folders, "exchange", lambda one, other: False)
    out = tmp_path / "w" / "a.mmgen"
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass

    def prepare() -> None:
        again(out.parent)
        put(out, OLDER)
        if recovers:
            put(out.with_name(f".{out.name}.{dead.pid}.old"), OLDER)

    for _ in at_every_call(lambda: folders.recover(out) if recovers else replace(out), prepare):
        shutil.rmtree(out, ignore_errors=True)
        assert not folders.put_back(out) or content_of(out) == OLDER


def test_builds_that_are_put_in_place_while_a_bundle_is_replaced_are_not_lost(tmp_path: Path) -> None:
    """Another process is at work in the older one's engines; they are the newer one's as they are, it included."""
    out = tmp_path / "a.mmgen"
    put(out, OLDER)
    put(out, {"engines/.other.7.partial/step.engine": "half a"})
    here = os.open(out / "engines", os.O_RDONLY)
    with placed(out, 0) as folder:
        put(folder, NEWER)
        put(out, {"engines/late/step.engine": "late"})
    assert os.path.samestat(os.fstat(here), (out / "engines").stat())
    os.close(here)
    late = {"engines/.other.7.partial/step.engine": "half a", "engines/late/step.engine": "late"}
    assert content_of(out) == NEWER | ENGINES | late


# Engines


@pytest.mark.parametrize("swap", [True, False], ids=["exchange", "two renames"])
def test_a_builder_that_is_killed_leaves_what_the_next_one_clears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle_folder: Path, swap: bool
) -> None:
    bundle = read_bundle(shutil.copytree(bundle_folder, tmp_path / "b.mmgen"))
    engines, wanted = bundle.path("engines"), identity(bundle)
    if not swap:
        monkeypatch.setattr(folders, "exchange", lambda one, other: False)

    def build() -> None:
        with cache.building(bundle, wanted) as folder:
            fill(folder, wanted)

    def damaged() -> None:
        again(engines)
        build()
        flip(engines / wanted.key / "step.engine")

    for _ in at_every_call(build, damaged):
        if (engines / wanted.key).exists():
            assert len(list((engines / wanted.key).iterdir())) == len(bundle.graphs) + 1
        build()
        assert cache.find(bundle, wanted) and beside(engines / wanted.key) == []


def test_pruning_that_is_killed_leaves_a_build_whole_or_what_is_cleared(tmp_path: Path, bundle_folder: Path) -> None:
    bundle = read_bundle(shutil.copytree(bundle_folder, tmp_path / "b.mmgen"))
    engines, wanted = bundle.path("engines"), identity(bundle)

    def prepare() -> None:
        again(engines)
        with cache.building(bundle, wanted) as folder:
            fill(folder, wanted)
            (folder / "step.engine").write_text("damaged")

    for _ in at_every_call(lambda: cache.prune(bundle), prepare):
        if (engines / wanted.key).exists():
            assert len(list((engines / wanted.key).iterdir())) == len(bundle.graphs) + 1
        cache.prune(bundle)
        assert list(engines.iterdir()) == []


# Files


def test_a_file_is_the_older_one_or_the_newer_and_leftovers_go_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "w" / "a.png"

    def write(content: bytes = b"newer") -> None:
        with whole_file(path) as put_there:
            put_there(content)

    for _ in at_every_call(write, lambda: (again(path.parent), path.write_bytes(b"older"))):
        assert path.read_bytes() in (b"older", b"newer")
        write(b"last")
        assert path.read_bytes() == b"last" and beside(path) == []


def test_a_file_that_somebody_else_is_writing_is_no_leftover(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with whole_file(path) as first:
        first(b"first")
        with whole_file(path) as second:
            second(b"second")
        theirs = tmp_path / f".a.png.{os.getppid()}.{'0' * 16}.partial"
        theirs.touch()
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first" and beside(path) == [theirs.name]


def test_an_error_that_names_a_file_elsewhere_is_not_the_places(tmp_path: Path) -> None:
    """A model of the user's own may read files of its own."""
    for name, kind in ((tmp_path.parent / "mine.txt", FileNotFoundError), (tmp_path / "a.mmgen" / "x", MmgenError)):
        with pytest.raises(kind, match="No such file"), placed(tmp_path / "a.mmgen", 0):
            name.read_text()
        assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import whole_file
from mmgen.runtime.files.folders import whole_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
out = Path(sys.argv[1])
try:
    if out.suffix:
        with whole_file(out) as write:
            write(bytes(5000))
    else:
        with whole_folder(out) as folder:
            (folder / "big").write_bytes(bytes(5000))
except MmgenError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["a.png", "folder"])
def test_a_file_larger_than_may_be_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    pytest.importorskip("resource", reason="there are no such limits here")
    out = tmp_path / name
    ran = subprocess.run([sys.executable, "-c", LIMITED, str(out)], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == f"{out} can't be written (File too large); choose another place", ran.stderr
    assert list(tmp_path.iterdir()) == []
