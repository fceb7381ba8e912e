"""Engines in a bundle: never a wrong one, always a reason, and built again when they are damaged.

The engines here are bytes; what makes them is another matter.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fake_builds import HERE, OPTIONS, ORIN, RTX, fill, flip, identity, make
from manifests import left_in

from mmgen.engines import cache
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store as store
from mmgen.runtime.builds.engine_build import SIDECAR, Options, Place
from mmgen.runtime.files.json_records import to_json
from mmgen.runtime.storage.schema import Axis, Bundle

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


# The whole identity goes through JSON unchanged, or a build would never be found again


def test_the_sidecar_says_what_the_identity_was(bundle: Bundle) -> None:
    wanted = identity(bundle, RTX, Options(({"B": Axis(1, 1, 8)}, {"B": Axis(1, 2, 2)}), 512, 5))
    folder = make(bundle, wanted)
    assert json.loads((folder / SIDECAR).read_text())["identity"] == to_json(wanted)
    assert store.read_build(folder).identity == wanted
