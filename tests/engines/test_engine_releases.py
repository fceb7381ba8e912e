"""What the builder asks of each release of TensorRT, on a stand-in with that release's own names."""

import os
from pathlib import Path
from typing import Any

import api
import pytest
from play import FLAVOURS, Machine, copied
from standin_network import unpack

from mmgen.engines import compile as compiling
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import Build
from mmgen.runtime.storage.schema import Axis

releases = pytest.mark.parametrize("release", api.VERSIONS)
tensorrt = pytest.mark.parametrize("release", api.TENSORRT)


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    return copied(bundle_folder, tmp_path / "b.mmgen")


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every builder config that was made."""
    made, make = list[Any](), compiling._config

    def spy(*arguments: Any) -> Any:
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(compiling, "_config", spy)
    return made


def headers(folder: Path, build: Build) -> dict[str, dict[str, Any]]:
    """Return what each engine was built for."""
    return {role: unpack((folder / engine.file).read_bytes())[0] for role, engine in build.engines.items()}


@releases
def test_every_release_is_asked_for_the_same(
    release: str, bundle: Path, configs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(release, monkeypatch)
    _, build = machine.build(bundle, workspace_mib=256, optimization_level=4)
    module = machine.library.module
    assert len(configs) == len(build.engines)
    for config in configs:
        assert not config.get_flag(module.BuilderFlag.TF32)
        assert config.get_memory_pool_limit(module.MemoryPoolType.WORKSPACE) == 256 << 20
        assert config.builder_optimization_level == 4
        assert config.profiling_verbosity == module.ProfilingVerbosity.LAYER_NAMES_ONLY
        assert (config.get_timing_cache() is not None) == (FLAVOURS[release] == "tensorrt")


@releases
def test_engines_are_for_the_device_that_is_there(release: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(release, monkeypatch)
    folder, build = machine.build(bundle)
    capability = build.identity.place.compute_capabilities
    assert len(capability) == 1 and build.identity.place.version == machine.library.version
    if FLAVOURS[release] == "tensorrt-rtx":
        assert {tuple(h["capabilities"]) for h in headers(folder, build).values()} == {capability}


@releases
def test_profiles_have_the_order_that_the_sidecar_has(
    release: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, build = Machine(release, monkeypatch).build(bundle)
    profiles = build.identity.options.profiles
    assert len(profiles) == (1 if FLAVOURS[release] == "tensorrt-rtx" else 2)
    latents = [profile["latents"] for profile in headers(folder, build)["decode"]["profiles"]]
    assert latents == [[[n, 4, 8, 8] for n in (p["B"].min, p["B"].opt, p["B"].max)] for p in profiles]
    assert all(len(header["profiles"]) == len(profiles) for header in headers(folder, build).values())


@tensorrt
def test_static_axes_are_one_profile(release: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"B": Axis(1, 1, 1), "G": Axis(2, 2, 2), "N": Axis(6, 6, 6)}
    folder, build = Machine(release, monkeypatch).build(bundle, axes=axes)
    assert build.identity.options.profiles == ({**axes, "R": Axis(2, 2, 2)},)
    assert headers(folder, build)["condition"]["profiles"][0]["prompt"] == [[2, 4]] * 3


@tensorrt
def test_timings_are_kept_beside_the_builds(release: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(release, monkeypatch)
    machine.build(bundle)
    (timings,) = os.listdir(bundle / "engines/timing")
    machine.build(bundle, optimization_level=1)
    assert os.listdir(bundle / "engines/timing") == [timings]


@releases
def test_a_compiler_that_fails_says_why_and_leaves_nothing(
    release: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(release, monkeypatch)
    machine.library.fail("build_serialized_network", 2)
    with pytest.raises(MmgenError, match=r"^graph \w+: TensorRT.* can't compile it for sm\d+, got .*OutOfMemory"):
        machine.build(bundle)
    assert set(os.listdir(bundle / "engines")) <= {"timing"}


@releases
def test_nothing_is_left_on_the_device(release: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(release, monkeypatch)
    machine.build(bundle)
    assert not machine.live()
