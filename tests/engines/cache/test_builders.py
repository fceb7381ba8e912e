"""A builder of engines that fails, is killed or meets another one: nothing half-written is used or stays."""

import fcntl
import hashlib
import os
import signal
import sys
import warnings
from pathlib import Path

import manifests
import pytest
from fake_builds import ORIN, RTX, child, fill, flip, identity, make, said
from manifests import left_in

from mmgen.engines import cache
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store as store
from mmgen.runtime.files.locks import locked
from mmgen.runtime.files.unfinished import leftovers
from mmgen.runtime.storage.schema import Bundle

# Ended half-way


def test_a_block_that_fails_or_leaves_nothing_changes_nothing(bundle: Bundle) -> None:
    wanted = identity(bundle)
    with pytest.raises(ZeroDivisionError), cache.building(bundle, wanted) as folder:
        fill(folder, wanted)
        1 / 0  # noqa: B018
    assert left_in(bundle.folder / "engines") == []
    older = make(bundle, wanted)
    with cache.building(bundle, wanted):
        pass
    assert left_in(older.parent) == [wanted.key]
    assert cache.find(bundle, wanted)


def test_a_full_disk_is_one_line_and_leaves_nothing(bundle: Bundle) -> None:
    with (
        pytest.raises(MmgenError, match=r"can't be written \(No space left on device\); make room, or copy the bundle"),
        cache.building(bundle, identity(bundle)),
    ):
        raise OSError(28, os.strerror(28))
    assert left_in(bundle.folder / "engines") == []


def test_too_little_room_is_said_before_any_work(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROOM", 1e12)
    message = r"free space in .*engines, got .* GiB, wanted .* GiB; make room"
    with pytest.raises(MmgenError, match=message), cache.building(bundle, identity(bundle)):
        pytest.fail("the block was entered")


def test_a_bundle_that_cannot_be_written_is_one_line(bundle: Bundle) -> None:
    (bundle.folder / "engines").write_text("not a folder")
    with pytest.raises(MmgenError, match=r"engines can't be written"), cache.building(bundle, identity(bundle)):
        pytest.fail("the block was entered")


def test_engines_of_a_bundle_that_was_exported_anew_meanwhile_are_refused(bundle: Bundle) -> None:
    wanted = identity(bundle)
    with (
        pytest.raises(MmgenError, match=r"b.mmgen changed while it was being built; mmgen build"),
        cache.building(bundle, wanted) as folder,
    ):
        fill(folder, wanted)
        graph = bundle.path(bundle.graphs["encode"].file)
        graph.write_bytes(content := graph.read_bytes() + b"\n")
        new = hashlib.sha256(content).hexdigest()
        manifests.edit(bundle.folder, lambda record: record["graphs"]["encode"].update(sha256=new))
    assert left_in(bundle.folder / "engines") == []


@pytest.mark.parametrize("older", [False, True], ids=["nothing there", "a damaged build there"])
@pytest.mark.parametrize("how", ["in the build", "before the end", "between the renames"])
def test_a_builder_that_is_killed_leaves_nothing_that_is_used_or_stays(bundle: Bundle, how: str, older: bool) -> None:
    wanted = identity(bundle)
    if older:
        flip(make(bundle, wanted) / "step.engine")
    with child(bundle, how) as process:
        assert said(process) == how
        process.kill()
    engines = bundle.folder / "engines"
    assert [pid for _, pid, kind in leftovers(engines / wanted.key) if kind == "partial"] == [process.pid]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cache.find(bundle, wanted) is None
        if older and how != "between the renames":  # the damaged one is still there
            folder, build = store.find(bundle, ORIN)
            with pytest.raises(MmgenError, match="sha256"):
                store.engine_bytes(folder, build.engines["step"])
        else:
            with pytest.raises(MmgenError, match="has no engines; mmgen build"):
                store.find(bundle, ORIN)
    make(bundle, wanted)
    assert cache.find(bundle, wanted)
    assert left_in(engines) == [wanted.key]


def test_a_builder_that_is_told_to_end_cleans_up(bundle: Bundle) -> None:
    with child(bundle, "in the build") as process:
        assert said(process) == "in the build"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert left_in(bundle.folder / "engines") == []


# Two at once


def test_the_second_builder_says_that_it_waits_and_finds_what_the_first_built(bundle: Bundle) -> None:
    with child(bundle, "slowly") as first, child(bundle, "slowly") as second:
        said_first = said(first)
        if said_first == "waiting for another builder of the same":  # it came second
            first, second = second, first
            assert said(first) == "building"
        else:
            assert said_first == "building"
            assert said(second) == "waiting for another builder of the same"
        assert first.stdin is not None
        first.stdin.write("\n")
        first.stdin.flush()
        assert said(first) == "done"
        assert [said(second), said(second)] == ["found", "done"]
    assert left_in(bundle.folder / "engines") == [identity(bundle).key]


def test_a_builder_that_waits_goes_on_when_the_first_is_killed(bundle: Bundle) -> None:
    with child(bundle, "in the build") as first:
        assert said(first) == "in the build"
        with child(bundle, "quickly") as second:
            assert said(second) == "waiting for another builder of the same"
            first.kill()
            assert said(second) == "done"
    assert left_in(bundle.folder / "engines") == [identity(bundle).key]


def test_builders_of_different_things_do_not_wait(bundle: Bundle) -> None:
    def fail(stage: str, fraction: float) -> None:
        pytest.fail(stage)

    one, other = identity(bundle), identity(bundle, RTX)
    with cache.building(bundle, one, fail) as a, cache.building(bundle, other, fail) as b:
        fill(a, one)
        fill(b, other)
    assert left_in(bundle.folder / "engines") == sorted([one.key, other.key])


def test_a_lock_whose_file_is_taken_away_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waited = []

    def waiting() -> None:  # the holder ends, and another one comes before us
        waited.append(len(waited))
        path.unlink()
        os.close(held.pop())
        if len(waited) == 1:
            held.append(os.open(path, os.O_CREAT | os.O_RDWR))
            fcntl.flock(held[0], fcntl.LOCK_EX)

    held = [os.open(path, os.O_CREAT | os.O_RDWR)]
    fcntl.flock(held[0], fcntl.LOCK_EX)
    with locked(path, waiting) as state:
        assert (state, waited) == ("mine", [0, 1])
        with locked(path, None) as other:
            assert other == "theirs"
        assert path.exists()
    assert left_in(tmp_path) == []


def test_where_there_are_no_locks_builds_go_on(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    wanted = identity(bundle)
    make(bundle, wanted)
    assert cache.find(bundle, wanted)
    assert [item.reason for item in cache.prune(bundle)] == []
