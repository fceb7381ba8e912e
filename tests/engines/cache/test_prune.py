"""What pruning takes out of a bundle's engines, with its reason, and what it leaves."""

import os
import subprocess
import sys
from dataclasses import replace

from fake_builds import HERE, OPTIONS, ORIN, RTX, child, fill, flip, identity, make, said
from manifests import left_in

from mmgen.engines import cache
from mmgen.runtime.builds.engine_build import Identity
from mmgen.runtime.storage.schema import Bundle


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
