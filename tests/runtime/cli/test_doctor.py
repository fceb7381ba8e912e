"""``mmgen doctor`` on machines as they describe themselves: the files and outputs are those of real boards."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmgen.runtime.backends.registry import AUTO
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench import machine
from mmgen.runtime.cli import doctor
from mmgen.runtime.storage.bundle import read_bundle

ORIN_NANO = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/meminfo": "MemTotal:        7802820 kB\nMemFree:          812340 kB\nMemAvailable:    5976116 kB\n",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  "
    "(buildbrain@mobile-u64-6336-d8000)  Tue Jan  7 17:35:12 PST 2025\n"
    "GCC version:  collect2: error: ld returned 1 exit status    \n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, "
    "DATE: Thu Sep 18 22:54:44 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
    "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n",
    "etc/nvpmodel.conf": "< PARAM TYPE=FILE NAME=CPU_ONLINE >\nCORE_0 /sys/devices/system/cpu/cpu0/online\n\n"
    "< POWER_MODEL ID=0 NAME=15W >\nGPU MAX_FREQ 612000000\n< POWER_MODEL ID=1 NAME=25W >\nGPU MAX_FREQ 918000000\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nGPU MAX_FREQ -1\n< POWER_MODEL ID=3 NAME=7W >\n< PM_CONFIG DEFAULT=1 >\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "729600000\n",
    "sys/class/devfreq/15340000.vic/min_freq": "115200000\n",
    "sys/class/devfreq/15340000.vic/max_freq": "729600000\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "918000000\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "47187\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "46187\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}}',
    "var/lib/dpkg/status": "Package: libnvinfer10\nStatus: install ok installed\nArchitecture: arm64\n"
    "Version: 10.3.0.30-1+cuda12.5\n\nPackage: libnvinfer8\nStatus: deinstall ok config-files\nVersion: 8.5.2-1\n\n"
    "Package: python3-libnvinfer\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n\n"
    "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2.1+b38\n",
}
THOR = {
    "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  595.78  Release Build  "
    "(dvs-builder@U22)\n",
    "etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 45678901, BOARD: generic, EABI: aarch64\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
    "sys/class/devfreq/bwmgr/cur_freq": "4266000000\n",
    "sys/class/devfreq/gpu-gpc-0/cur_freq": "1575000000\n",
    "sys/class/devfreq/gpu-gpc-0/min_freq": "1575000000\n",
    "sys/class/devfreq/gpu-gpc-0/max_freq": "1575000000\n",
    "sys/class/devfreq/gpu-nvd-0/cur_freq": "1500000000\n",
}
DESKTOP = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Wed Jan 22 2025\n",
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 7 7700 8-Core Processor\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine; programs are looked for in its bin/."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def furnish(root: Path, files: dict[str, str], **programs: str) -> None:
    """Files, and programs that print something."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    for name, script in programs.items():
        path = root / "bin" / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


def prints(*lines: str) -> str:
    return "\n".join(f"echo '{line}'" for line in lines)


def known(found: dict[str, Any]) -> dict[str, Any]:
    """What is known, without what this machine adds of itself."""
    return {k: v for k, v in found.items() if v is not None and k not in ("python", "system", "cpu", "cores")}


# What the machine is


def test_an_orin(root: Path) -> None:
    furnish(root, ORIN_NANO, nvpmodel=prints("NV Power Mode: 25W", "1"))
    assert known(machine.record(root)) == {
        "board": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "jetson_linux": "36.4.7",
        "jetpack": "6.2.1",
        "memory_bytes": 7802820 * 1024,
        "memory_available_bytes": 5976116 * 1024,
        "nvidia_driver": "540.4.0",
        "cuda_toolkit": "12.6.11",
        "tensorrt_libraries": "10.3.0.30-1+cuda12.5",
        "tensorrt_python": "10.3.0.30-1+cuda12.5",
        "power_mode": {"name": "25W", "number": 1, "best": "MAXN_SUPER", "best_number": 2},
        "gpu_clock": {"now": 306_000_000, "least": 306_000_000, "most": 918_000_000},
        "gpu_celsius": 46.187,
    }


def test_a_cpu_s_clock_and_who_chooses_it(root: Path) -> None:
    policy = "sys/devices/system/cpu/cpufreq/policy0/scaling_"
    files = {"cur_freq": "1510400\n", "min_freq": "115200\n", "max_freq": "1728000\n", "governor": "schedutil\n"}
    furnish(root, {policy + name: content for name, content in files.items()})
    clock = {"now": 1_510_400_000, "least": 115_200_000, "most": 1_728_000_000, "governor": "schedutil"}
    assert machine.state(root)["cpu_clock"] == clock


def test_a_thor(root: Path) -> None:
    furnish(root, THOR, nvpmodel=prints("NV Power Mode: MAXN", "0"))
    assert known(machine.record(root)) == {
        "board": "NVIDIA Jetson AGX Thor Developer Kit",
        "jetson_linux": "39.2.0",
        "jetpack": "7",  # which 7 only its package would tell
        "nvidia_driver": "595.78",
        "power_mode": {"name": "MAXN", "number": 0, "best": "MAXN", "best_number": 0},
        "gpu_clock": {"now": 1_575_000_000, "least": 1_575_000_000, "most": 1_575_000_000},
    }


def test_a_desktop(root: Path) -> None:
    furnish(root, DESKTOP, nvidia_smi=prints("570.86.15, P8, 210 MHz, 2100 MHz, 170.00 W, 38", "a second GPU"))
    found = machine.record(root)
    assert found["cpu"] == "AMD Ryzen 7 7700 8-Core Processor"
    assert found["nvidia_driver"] == "570.86.15"
    assert found["nvidia_smi"] == {
        "driver_version": "570.86.15", "pstate": "P8", "clocks.sm": "210 MHz", "clocks.max.sm": "2100 MHz",
        "power.limit": "170.00 W", "temperature.gpu": "38",
    }  # fmt: skip


def test_what_nvidia_smi_does_not_know_is_left_out(root: Path) -> None:
    furnish(root, THOR, nvidia_smi=prints("595.78, [N/A], [N/A], [N/A], [N/A], 41"))
    assert machine.record(root)["nvidia_smi"] == {"driver_version": "595.78", "temperature.gpu": "41"}


def test_a_machine_without_any_of_it(root: Path) -> None:
    assert known(machine.record(root)) == {}


@pytest.mark.parametrize(
    "script", ["exit 1", "echo nothing of use", "echo 'NVPM ERROR: Error opening /sys/x: 13' >&2; exit 255", ""]
)
def test_programs_that_fail_are_as_if_they_were_not_there(script: str, root: Path) -> None:
    furnish(root, ORIN_NANO, nvpmodel=script, nvidia_smi=script)
    found = machine.record(root)
    assert found["power_mode"] is None and found["nvidia_smi"] is None


def test_files_that_can_not_be_read_are_as_if_they_were_not_there(root: Path) -> None:
    furnish(root, ORIN_NANO | {"usr/local/cuda/version.json": "{", "sys/class/devfreq/17000000.gpu/cur_freq": ""})
    zone = root / "sys/class/thermal/thermal_zone1/temp"
    zone.unlink()
    zone.mkdir()  # reading it fails, as that of a zone that is switched off
    found = machine.record(root)
    assert (found["cuda_toolkit"], found["gpu_clock"], found["gpu_celsius"]) == (None, None, None)


# What is made of it


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that works and both of TensorRT's libraries."""
    device = SimpleNamespace(
        name="Orin", compute_capability="sm87", multiprocessors=8, memory_bytes=7990087680, driver_cuda="12.6",
        free_bytes=lambda: 5261334937, close=lambda: None,
    )  # fmt: skip
    monkeypatch.setattr(doctor, "open_device", lambda: device)
    monkeypatch.setattr(doctor, "find_library", lambda flavour: flavour)
    monkeypatch.setattr(doctor, "version", lambda library: {"tensorrt": "10.3.0.30"}.get(library, "1.7.1.116"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MmgenError("nothing here", remedy="buy one")

    monkeypatch.setattr(doctor, "open_device", missing)
    monkeypatch.setattr(doctor, "find_library", missing)


def lines(found: dict[str, Any]) -> dict[str, list[str]]:
    """The text by the words at the start of its lines."""
    said: dict[str, list[str]] = {}
    for line in doctor.text(found).splitlines():
        key, _, value = line.partition("  ")
        said.setdefault(key, []).append(value.strip())
    return said


def test_it_says_all_that_a_board_tells(root: Path, gpu: None) -> None:
    furnish(root, ORIN_NANO, nvpmodel=prints("NV Power Mode: 25W", "1"))
    said = lines(doctor.record(root=root))
    assert said["backend tensorrt"] == said["backend tensorrt-rtx"] == ["works"]
    assert said["gpu"] == ["Orin, sm87, 8 multiprocessors, 7.4 GiB, 4.9 free, driver for CUDA 12.6"]
    assert said["gpu clock"] == ["306 MHz, from 306 to 918 MHz"]
    assert said["power mode"] == ["25W (1)"]
    assert said["jetpack"] == ["6.2.1 (Jetson Linux 36.4.7)"]
    assert said["tensorrt"] == ["10.3.0.30"]
    assert said["system tensorrt"] == ["10.3.0.30-1+cuda12.5"]
    assert said["memory"] == ["7.4 GiB, 5.7 free"]


def test_it_advises_what_makes_a_board_fast(root: Path, gpu: None) -> None:
    furnish(root, ORIN_NANO, nvpmodel=prints("NV Power Mode: 25W", "1"))
    mode, clocks = lines(doctor.record(root=root))["advice"]
    assert mode.endswith("sudo nvpmodel -m 2")
    assert clocks.endswith("sudo jetson_clocks")


def test_it_advises_nothing_where_a_board_is_fast(root: Path, gpu: None) -> None:
    furnish(root, THOR, nvpmodel=prints("NV Power Mode: MAXN", "0"))
    said = lines(doctor.record(root=root))
    assert "advice" not in said
    assert said["gpu clock"] == ["1575 MHz, fixed"]


def test_an_environment_that_hides_the_system_s_tensorrt(root: Path, no_gpu: None) -> None:
    furnish(root, ORIN_NANO)
    assert any("--system-site-packages" in line for line in lines(doctor.record(root=root))["advice"])


def test_a_backend_says_all_that_it_lacks(root: Path, no_gpu: None) -> None:
    backends = {backend["name"]: backend for backend in doctor.record(root=root)["backends"]}
    assert list(backends) == [*AUTO, "openvino-bf16", "ort-cpu-int8"]
    assert backends["tensorrt"]["reason"] == "nothing here; buy one; and nothing here; buy one"
    assert backends["ort-cpu"] == {"name": "ort-cpu", "works": True, "reason": None}


def test_for_a_bundle_it_says_what_auto_takes_and_why_not_the_others(root: Path, bundle_folder: Path) -> None:
    found = doctor.record(read_bundle(bundle_folder), root)
    backends = {backend["name"]: backend for backend in found["backends"]}
    if backends["tensorrt"]["works"] or backends["tensorrt-rtx"]["works"] or backends["ort-cuda"]["works"]:
        pytest.skip("there is a CUDA device here")
    assert found["auto"] == next(name for name in ("openvino", "ort-cpu") if backends[name]["works"])
    assert lines(found)["auto takes"] == [found["auto"]]
    assert backends["ort-cpu"]["works"]
    assert all(backends[name]["reason"] for name in ("tensorrt", "tensorrt-rtx", "ort-cuda"))


def test_all_of_it_is_json(root: Path) -> None:
    json.dumps(doctor.record(root=root), allow_nan=False)
