"""What a build takes and tells: memory, progress, and timings that the next one begins with."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from mmgen.engines import memory
from mmgen.engines.compile import save_timing_cache, timing_cache
from mmgen.engines.phases import Phases

# Memory


def test_the_estimate_is_near_what_was_measured() -> None:
    for weights, measured in ((14, 387), (63, 490), (1434, 4964)):  # MiB, with TensorRT for RTX 1.7.1
        expected = memory.expected_bytes(weights << 20, "tensorrt-rtx", 512, shared=False) >> 20
        assert measured <= expected <= 1.2 * measured


def test_the_workspace_counts_where_cpu_and_gpu_share_memory(tmp_path: Path) -> None:
    apart, shared = (memory.expected_bytes(1 << 20, "tensorrt", 512, shared=shared) for shared in (False, True))
    assert shared - apart == 512 << 20
    assert not memory.is_shared(tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(b"nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0")
    assert memory.is_shared(tmp_path)


def test_free_memory_is_what_the_kernel_says(tmp_path: Path) -> None:
    assert memory.free_bytes(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   42 kB\n")
    assert memory.free_bytes(tmp_path) == 42 * 1024


def test_too_little_memory_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"^compiling step takes about 2.0 GiB of memory and 1.0 GiB are free; close"):
        memory.warn_if_short("compiling step", 2 << 30, 1 << 30, shared=False)
    with pytest.warns(UserWarning, match="--workspace"):
        memory.warn_if_short("compiling step", 2 << 30, 1 << 30, shared=True)
    memory.warn_if_short("compiling step", 2 << 30, None, shared=False)  # nothing is known, nothing is said


# Progress


def test_nested_phases_are_one_fraction_that_grows() -> None:
    told: list[float] = []
    phases = Phases(told.append)
    phases.start("building", None, 4)
    phases.step("building", 0)
    phases.start("optimizing", "building", 2)
    phases.start("timing", "optimizing", 5)
    for i in range(5):
        phases.step("timing", i)
    phases.finish("timing")
    phases.step("optimizing", 0)  # no news: all of its first step was told
    phases.finish("optimizing")
    phases.step("building", 1)
    phases.step("unknown", 7)
    phases.step("building", 9)
    assert told == pytest.approx([0.25, 0.275, 0.3, 0.325, 0.35, 0.375, 0.5, 1.0])


# Timings


class Config:
    """TensorRT's config as far as timings go: takes caches that begin with its device, and adds to them."""

    def __init__(self, device: bytes) -> None:
        self.device, self.cache = device, b""

    def create_timing_cache(self, content: bytes) -> bytes | None:
        return None if content.startswith(b"damaged") else content or self.device

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        self.cache = cache + b"+"
        return cache.startswith(self.device) or ignore_mismatch

    def get_timing_cache(self) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: self.cache)


@pytest.mark.parametrize(("before", "after"), [(None, b"orin+"), (b"orin+", b"orin++")])
def test_timings_are_kept_in_a_file(tmp_path: Path, before: bytes | None, after: bytes) -> None:
    path, warned = tmp_path / "timings", list[str]()
    if before is not None:
        path.write_bytes(before)
    config = Config(b"orin")
    assert timing_cache(config, path, warned.append)
    save_timing_cache(config, path, warned.append)
    assert (path.read_bytes(), warned) == (after, [])


@pytest.mark.parametrize("before", [b"damaged", b"thor+"])
def test_timings_that_do_not_fit_are_replaced_with_a_warning(tmp_path: Path, before: bytes) -> None:
    path, warned = tmp_path / "timings", list[str]()
    path.write_bytes(before)
    config = Config(b"orin")
    assert timing_cache(config, path, warned.append)
    save_timing_cache(config, path, warned.append)
    assert path.read_bytes() == b"orin+"
    assert warned == [f"{path} is damaged or of another device; timing again"]


def test_timings_that_can_not_be_kept_are_a_warning(tmp_path: Path) -> None:
    warned: list[str] = []
    save_timing_cache(Config(b"orin"), tmp_path / "nowhere" / "timings", warned.append)
    assert len(warned) == 1 and "can't be written" in warned[0]
