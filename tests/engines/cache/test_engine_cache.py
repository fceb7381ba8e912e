"""Engines in a bundle: never a wrong one, always a reason, whatever happens while they are built.

The engines here are bytes; what makes them is another matter.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import manifests
import pytest
from fake_builds import HERE, OPTIONS, ORIN, RTX, fill, flip, identity
from tree import PYTHON_PATH

from mmgen.engines import cache
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store as store
from mmgen.runtime.builds.engine_build import SIDECAR, Identity, Options, Place
from mmgen.runtime.files.json_records import to_json
from mmgen.runtime.files.locks import locked
from mmgen.runtime.files.unfinished import leftovers
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Axis, Bundle


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Bundle:
    return read_bundle(shutil.copytree(bundle_folder, tmp_path / "b.mmgen"))


def make(bundle: Bundle, wanted: Identity, created: str = "2026-01-01T00:00:00+00:00") -> Path:
    with cache.building(bundle, wanted) as folder:
        fill(folder, wanted, created)
    return cache.folder_of(bundle, wanted)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Found again


def test_a_build_is_found_by_its_identity_and_is_what_was_put_there(bundle: Bundle) -> None:
    wanted = identity(bundle)
    assert cache.find(bundle, wanted) is None
    with cache.building(bundle, wanted) as folder:
        assert left_in(folder) == []
        build = fill(folder, wanted)
        assert cache.find(bundle, wanted) is None, "it isn't there before it is whole"
    assert cache.find(bundle, wanted) == (bundle.folder / "engines" / wanted.key, build)
    assert left_in(bundle.folder / "engines") == [wanted.key]


def test_the_runtime_takes_the_newest_that_fits_whatever_its_options(bundle: Bundle) -> None:
    make(bundle, identity(bundle), "2026-01-01T00:00:00+00:00")
    newer = make(bundle, identity(bundle, options=replace(OPTIONS, workspace_mib=64)), "2026-01-02T00:00:00+00:00")
    make(bundle, identity(bundle, RTX), "2026-01-03T00:00:00+00:00")
    folder, build = store.find(bundle, ORIN)
    assert (folder, build.identity.options.workspace_mib) == (newer, 64)
    content = store.engine_bytes(folder, build.engines["step"])
    assert content == (folder / "step.engine").read_bytes()
    assert [b.created[:10] for _, b in store.builds(bundle)] == ["2026-01-03", "2026-01-02", "2026-01-01"]


def test_an_engine_for_several_devices_fits_each_of_them(bundle: Bundle) -> None:
    make(bundle, identity(bundle, RTX))
    assert store.find(bundle, HERE)[1].identity.place == RTX
    with pytest.raises(MmgenError, match=r"place.compute_capabilities: found \[\"sm86\", \"sm89\"\], wanted"):
        store.find(bundle, replace(HERE, compute_capabilities=("sm120",)))


def test_an_engine_of_a_graph_that_is_no_longer_there_does_no_harm(bundle: Bundle) -> None:
    make(bundle, identity(bundle))
    fewer = replace(bundle, graphs={role: g for role, g in bundle.graphs.items() if role != "encode"})
    assert store.find(fewer, ORIN)


# Every field of the identity decides


PLACES = {
    "flavour": "tensorrt-rtx",
    "version": "10.9.0.34",
    "compute_capabilities": ("sm110",),
    "system": "linux x86_64",
    "cuda": "13.0",
    "device": "Thor",
    "multiprocessors": 8,
    "memory_gib": 8,
}


def test_no_field_of_a_place_is_forgotten_here() -> None:
    assert list(PLACES) == [field.name for field in dataclasses.fields(Place)]


@pytest.mark.parametrize("name", PLACES)
def test_another_place_is_a_miss_that_names_the_field(bundle: Bundle, name: str) -> None:
    make(bundle, identity(bundle))
    place = replace(ORIN, **{name: PLACES[name]})  # type: ignore[arg-type]
    assert cache.find(bundle, identity(bundle, place)) is None
    with pytest.raises(MmgenError) as failed:
        store.find(bundle, place)
    target = "" if name != "flavour" else " --target sm87"
    assert str(failed.value).startswith(f"no engine for this device: place.{name}: found ")
    assert str(failed.value).endswith(f"; mmgen build {bundle.folder}{target}")


def test_the_nearest_build_is_the_one_that_is_named(bundle: Bundle) -> None:
    make(bundle, identity(bundle, RTX))
    make(bundle, identity(bundle, replace(ORIN, device="Thor", multiprocessors=20, memory_gib=120)))
    make(bundle, identity(bundle))
    with pytest.raises(MmgenError, match=r"device: place.version: found '10.3.0.30', wanted '10.9.0.34'; mmgen build"):
        store.find(bundle, replace(ORIN, version="10.9.0.34"))
    with pytest.raises(MmgenError, match=r"version: found '10.3.0.30', wanted '10.9.0.34' and 1 more that differ"):
        store.find(bundle, replace(ORIN, version="10.9.0.34", cuda="13.0"))


@pytest.mark.parametrize(
    "options",
    [
        replace(OPTIONS, workspace_mib=512),
        replace(OPTIONS, optimization_level=5),
        replace(OPTIONS, profiles=({"B": Axis(1, 1, 4)},)),
        replace(OPTIONS, profiles=(*OPTIONS.profiles, *OPTIONS.profiles)),
    ],
    ids=["workspace", "level", "axis", "profiles"],
)
def test_other_options_are_another_build(bundle: Bundle, options: Options) -> None:
    make(bundle, identity(bundle))
    assert cache.find(bundle, identity(bundle, options=options)) is None


def test_a_changed_graph_is_a_miss_that_names_it(bundle: Bundle) -> None:
    make(bundle, identity(bundle))
    step = replace(bundle.graphs["step"], data_sha256="0" * 64)
    changed = replace(bundle, graphs={**bundle.graphs, "step": step})
    assert cache.find(changed, identity(changed)) is None
    with pytest.raises(MmgenError, match=r"no engine for this device: graphs.step: found '[0-9a-f]{16}', wanted '"):
        store.find(changed, ORIN)


def test_no_builds_at_all_says_so(bundle: Bundle) -> None:
    command = f"mmgen build '{bundle.folder}'" if " " in str(bundle.folder) else f"mmgen build {bundle.folder}"
    with pytest.raises(MmgenError) as failed:
        store.find(bundle, ORIN)
    assert str(failed.value) == f"{bundle.folder} has no engines; {command}"
    with pytest.raises(MmgenError, match=r"has no engines; mmgen build .* --target sm89$"):
        store.find(bundle, HERE)


# Damage: noticed, named, and built again


def edit(sidecar: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    record = json.loads(sidecar.read_text())
    change(record)
    sidecar.write_text(json.dumps(record))


ENGINE_DAMAGE = {
    "flipped bit": (lambda f: flip(f / "step.engine"), r"step.engine: sha256, got [0-9a-f]{16}, wanted [0-9a-f]{16}"),
    "cut short": (lambda f: os.truncate(f / "step.engine", 7), r"step.engine: bytes, got 7, wanted \d+"),
    "empty": (lambda f: os.truncate(f / "step.engine", 0), r"step.engine: bytes, got 0, wanted \d+"),
    "missing": (lambda f: (f / "step.engine").unlink(), r"step.engine can't be read \(No such file"),
    "another's": (lambda f: shutil.copy(f / "decode.engine", f / "step.engine"), r"step.engine: (bytes|sha256)"),
}
SIDECAR_DAMAGE = {
    "no sidecar": (lambda f: (f / SIDECAR).unlink(), r"build.json can't be read"),
    "half a sidecar": (lambda f: os.truncate(f / SIDECAR, 99), r"build.json is not JSON"),
    "not text": (lambda f: (f / SIDECAR).write_bytes(b"\xff\xfe"), r"build.json is not JSON"),
    "a list": (lambda f: (f / SIDECAR).write_text("[]"), r"build.json has no schema"),
    "another schema": (lambda f: edit(f / SIDECAR, lambda r: r["identity"].update(schema=99)), r"schema, got 99"),
    "unknown field": (lambda f: edit(f / SIDECAR, lambda r: r.update(colour="red")), r"unknown field 'colour'"),
    "missing field": (lambda f: edit(f / SIDECAR, lambda r: r.pop("created")), r"field 'created' is missing"),
    "another device": (
        lambda f: edit(f / SIDECAR, lambda r: r["identity"]["place"].update(device="Thor")),
        r"build.json is of another build, got [0-9a-f]{32}, wanted",
    ),
    "fewer engines": (lambda f: edit(f / SIDECAR, lambda r: r["engines"].pop("step")), r"build.json: engines, got"),
    "a path": (
        lambda f: edit(f / SIDECAR, lambda r: r["engines"]["step"].update(file="../x")),
        r"path '../x' leaves the folder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", [*ENGINE_DAMAGE, *SIDECAR_DAMAGE])
def test_a_damaged_build_is_no_build_and_is_replaced(bundle: Bundle, damage: str) -> None:
    break_it, words = {**ENGINE_DAMAGE, **SIDECAR_DAMAGE}[damage]
    wanted = identity(bundle)
    folder = make(bundle, wanted)
    break_it(folder)
    with pytest.warns(UserWarning, match=f"{words}.*; it is built again"):
        assert cache.find(bundle, wanted) is None
    make(bundle, wanted)
    assert cache.find(bundle, wanted) is not None
    assert left_in(bundle.folder / "engines") == [wanted.key]


@pytest.mark.parametrize("damage", ENGINE_DAMAGE)
def test_no_byte_of_a_damaged_engine_is_handed_out(bundle: Bundle, damage: str) -> None:
    break_it, words = ENGINE_DAMAGE[damage]
    break_it(make(bundle, identity(bundle)))
    folder, build = store.find(bundle, ORIN)
    with pytest.raises(MmgenError, match=f"{words}.*; the build is damaged; mmgen build "):
        store.engine_bytes(folder, build.engines["step"])
    assert store.engine_bytes(folder, build.engines["decode"])


@pytest.mark.parametrize("damage", SIDECAR_DAMAGE)
def test_an_unreadable_sidecar_is_skipped_with_its_reason(bundle: Bundle, damage: str) -> None:
    break_it, words = SIDECAR_DAMAGE[damage]
    break_it(make(bundle, identity(bundle)))
    with pytest.raises(MmgenError, match=rf"b.mmgen has no engines \(skipped: .*{words}.*\); mmgen build "):
        store.find(bundle, ORIN)
    other = make(bundle, identity(bundle, options=replace(OPTIONS, workspace_mib=1)))
    assert store.find(bundle, ORIN)[0] == other


def test_a_folder_that_was_renamed_is_no_build(bundle: Bundle) -> None:
    folder = make(bundle, identity(bundle))
    folder.rename(folder.with_name("for-orin"))
    with pytest.raises(MmgenError, match=r"for-orin/build.json is of another build"):
        store.find(bundle, ORIN)


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


CHILD = """
import os, sys, time
sys.path[:0] = sys.argv[1].split(os.pathsep)
from pathlib import Path
from mmgen.engines import cache
from mmgen.runtime.files import folders
from mmgen.runtime.storage.bundle import read_bundle
from fake_builds import fill, identity
bundle = read_bundle(sys.argv[2])
wanted = identity(bundle)
def stop(at):
    print(at, flush=True)
    time.sleep(60)
if sys.argv[3] == "between the renames":
    folders.exchange = lambda one, other: False  # as where the system can't
    rename = Path.rename
    def renamed(self, target):
        if str(self).endswith(".partial"):
            stop("between the renames")
        return rename(self, target)
    Path.rename = renamed
with cache.building(bundle, wanted, lambda stage, _: print(stage, flush=True)) as folder:
    if cache.find(bundle, wanted):
        print("found", flush=True)
    else:
        (folder / "step.engine").write_bytes(b"half an eng")
        if sys.argv[3] == "in the build":
            stop("in the build")
        fill(folder, wanted)
        if sys.argv[3] == "before the end":
            stop("before the end")
        if sys.argv[3] == "slowly":
            print("building", flush=True)
            sys.stdin.readline()
print("done", flush=True)
"""


def child(bundle: Bundle, how: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-W", "ignore", "-c", CHILD, PYTHON_PATH, str(bundle.folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


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


# Pruning


def test_what_can_be_used_stays(bundle: Bundle) -> None:
    wanted = [identity(bundle), identity(bundle, RTX), identity(bundle, options=replace(OPTIONS, workspace_mib=1))]
    for each in wanted:
        make(bundle, each)
    cache.timing_cache(bundle, ORIN).write_bytes(b"times")
    (bundle.folder / "engines" / "notes").mkdir()
    before = left_in(bundle.folder / "engines")
    assert cache.prune(bundle, [ORIN, HERE]) == []
    assert left_in(bundle.folder / "engines") == before
    assert cache.timing_cache(bundle, ORIN).is_file()


def test_what_cannot_be_used_goes_with_its_reason_and_size(bundle: Bundle) -> None:
    kept = make(bundle, identity(bundle))
    elsewhere = make(bundle, identity(bundle, replace(ORIN, version="10.9.0.34", device="Thor")))
    older = make(bundle, identity(bundle, replace(ORIN, version="10.1.0.0")))
    driver = make(bundle, identity(bundle, replace(ORIN, cuda="12.2")))
    rtx = make(bundle, identity(bundle, replace(RTX, version="1.1.0.0")))
    damaged = make(bundle, identity(bundle, RTX))
    flip(damaged / "step.engine")
    step = replace(bundle.graphs["step"], sha256="0" * 64)
    changed = Identity(cache.graph_hashes(replace(bundle, graphs={**bundle.graphs, "step": step})), ORIN, OPTIONS)
    (graphs := kept.with_name(changed.key)).mkdir()
    fill(graphs, changed)
    for name in (f".{'0' * 32}.1.partial", f".{kept.name}.{os.getppid()}.old"):
        (kept.parent / name).mkdir()
    (kept.parent / f".{'1' * 32}.lock").touch()
    times = cache.timing_cache(bundle, replace(ORIN, version="10.1.0.0"))
    times.write_bytes(b"old times")
    size = sum(file.stat().st_size for file in older.iterdir())

    removed = {item.path: item for item in cache.prune(bundle, [ORIN, HERE])}
    reasons = {path: item.reason for path, item in removed.items()}
    assert "place.version: found '10.1.0.0', wanted '10.3.0.30'" in reasons.pop(older)
    assert "place.cuda: found '12.2', wanted '12.6'" in reasons.pop(driver)
    assert "place.version: found '1.1.0.0', wanted '1.7.1.116'" in reasons.pop(rtx)
    assert "step.engine: sha256" in reasons.pop(damaged)
    assert "made from other graphs: graphs.step: found" in reasons.pop(graphs)
    assert reasons.pop(times) == "timings of another TensorRT than 10.3.0.30"
    assert {path.name.split(".")[-1] for path in reasons} == {"partial", "old"}
    assert set(reasons.values()) == {"left by a builder that was ended"}
    assert removed[older].bytes == size and removed[times].bytes == 9
    assert left_in(kept.parent) == sorted([kept.name, elsewhere.name, "timing"])


def test_a_build_that_was_set_aside_is_put_back(bundle: Bundle) -> None:
    folder = make(bundle, identity(bundle))
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    folder.rename(folder.with_name(f".{folder.name}.{dead.pid}.old"))
    assert cache.prune(bundle) == []
    assert cache.find(bundle, identity(bundle)) and left_in(folder.parent) == [folder.name]


def test_what_is_being_built_is_left_alone(bundle: Bundle) -> None:
    with child(bundle, "in the build") as process:
        assert said(process) == "in the build"
        before = left_in(bundle.folder / "engines")
        assert cache.prune(bundle, [ORIN]) == []
        assert left_in(bundle.folder / "engines") == before
        process.kill()
    assert [item.reason for item in cache.prune(bundle, [ORIN])] == ["left by a builder that was ended"]
    assert left_in(bundle.folder / "engines") == []


def test_a_bundle_without_engines_has_nothing_to_prune(bundle: Bundle) -> None:
    assert cache.prune(bundle, [ORIN]) == []
    assert not (bundle.folder / "engines").exists()


def test_timings_belong_to_a_place(bundle: Bundle) -> None:
    one, other = (cache.timing_cache(bundle, replace(ORIN, cuda=cuda)) for cuda in ("12.6", "13.0"))
    assert one != other and one.parent.is_dir() and one == cache.timing_cache(bundle, ORIN)


# The whole identity goes through JSON unchanged, or a build would never be found again


def test_the_sidecar_says_what_the_identity_was(bundle: Bundle) -> None:
    wanted = identity(bundle, RTX, Options(({"B": Axis(1, 1, 8)}, {"B": Axis(1, 2, 2)}), 512, 5))
    folder = make(bundle, wanted)
    assert json.loads((folder / SIDECAR).read_text())["identity"] == to_json(wanted)
    assert store.read_build(folder).identity == wanted
