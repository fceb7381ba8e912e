"""What this machine is, from files and programs that anybody may read: nothing here needs root or a GPU library."""

import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

JETPACK = {35: "5", 36: "6", 38: "7", 39: "7"}  # major release of Jetson Linux: major release of JetPack
GPU_CLOCK = re.compile(r"\d+\.gpu|\d+\.ga10b|gpu-gpc-\d+")  # in sys/class/devfreq: Orin on JetPack 6 and 5, Thor
SMI = ("driver_version", "pstate", "clocks.sm", "clocks.max.sm", "power.limit", "temperature.gpu")


def record(root: Path = Path("/")) -> dict[str, Any]:
    """Everything that is known of the machine; None is what can't be told.  ``root`` holds proc/, etc/ and so on."""
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.M))
    packages = _packages(_read(root / "var/lib/dpkg/status"))
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _first(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo")) or platform.processor() or None,
        "cores": cores(),
        "memory_bytes": int(memory["MemTotal"]) * 1024 if "MemTotal" in memory else None,
        "memory_available_bytes": int(memory["MemAvailable"]) * 1024 if "MemAvailable" in memory else None,
        "board": _read(root / "proc/device-tree/model").strip("\0\n") or None,
        **_jetson(_read(root / "etc/nv_tegra_release"), packages),
        "nvidia_driver": _first(r"Module.*?\s(\d+\.\d[\d.]*)\s", _read(root / "proc/driver/nvidia/version")),
        "cuda_toolkit": _cuda_toolkit(_read(root / "usr/local/cuda/version.json")),
        "tensorrt_libraries": next((v for name, v in packages.items() if re.fullmatch(r"libnvinfer\d+", name)), None),
        "tensorrt_python": packages.get("python3-libnvinfer"),
        **state(root),
    }


def state(root: Path = Path("/")) -> dict[str, Any]:
    """Read what changes while the machine works: power mode, clocks, temperature.  None: unknown."""
    return {
        "power_mode": _power_mode(_read(root / "etc/nvpmodel.conf")),
        "cpu_clock": _cpu_clock(root / "sys/devices/system/cpu/cpufreq"),
        "gpu_clock": _gpu_clock(root / "sys/class/devfreq"),
        "gpu_celsius": _gpu_celsius(root / "sys/class/thermal"),
        "nvidia_smi": _smi(),
    }


def cores() -> int | None:
    """How many this process may run on; None: this system doesn't tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _jetson(release: str, packages: dict[str, str]) -> dict[str, str | None]:
    """From ``# R36 (release), REVISION: 4.3, GCID: ...``; JetPack in full where its package is installed."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if not found:
        return {"jetson_linux": None, "jetpack": None}
    full = packages.get("nvidia-jetpack", "").partition("+")[0]
    return {"jetson_linux": f"{found[1]}.{found[2]}", "jetpack": full or JETPACK.get(int(found[1]))}


def _packages(status: str) -> dict[str, str]:
    """Installed packages and their versions, of dpkg's database."""
    found = {}
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.M))
        if fields.get("Status", "").endswith(" installed") and "Version" in fields:
            found[fields["Package"]] = fields["Version"]
    return found


def _power_mode(configuration: str) -> dict[str, Any] | None:
    """Read the mode that ``nvpmodel -q`` names; the board's unlimited one, whose number isn't 0 everywhere."""
    found = re.search(r"NV Power Mode: (\S+)\s+(\d+)", _output("nvpmodel", "-q"))
    if not found:
        return None
    modes = {name: int(number) for number, name in re.findall(r"POWER_MODEL ID=(\d+) NAME=(\S+)", configuration)}
    best = next((name for name in ("MAXN_SUPER", "MAXN") if name in modes), None)
    return {"name": found[1], "number": int(found[2]), "best": best, "best_number": modes[best] if best else None}


def _gpu_clock(folder: Path) -> dict[str, int] | None:
    """Hz now, and the range it may take; ``jetson_clocks`` makes the range one number."""
    for gpu in sorted(folder.glob("*")):
        values = [_read(gpu / f"{name}_freq").strip() for name in ("cur", "min", "max")]
        if GPU_CLOCK.fullmatch(gpu.name) and all(map(str.isdigit, values)):
            return dict(zip(("now", "least", "most"), map(int, values), strict=True))
    return None


def _cpu_clock(folder: Path) -> dict[str, Any] | None:
    """Hz of the first core now, the range it may take, and who chooses."""
    first = next(iter(sorted(folder.glob("policy*"))), folder)
    values = [_read(first / f"scaling_{name}_freq").strip() for name in ("cur", "min", "max")]
    if not all(map(str.isdigit, values)):  # in kHz
        return None
    hertz = (1000 * int(value) for value in values)
    governor = _read(first / "scaling_governor").strip() or None
    return {**dict(zip(("now", "least", "most"), hertz, strict=True)), "governor": governor}


def _gpu_celsius(folder: Path) -> float | None:
    for zone in sorted(folder.glob("thermal_zone*")):
        value = _read(zone / "temp").strip()  # in thousandths; a zone that is switched off can't be read
        if _read(zone / "type").strip().lower() == "gpu-thermal" and value.lstrip("-").isdigit():
            return int(value) / 1000
    return None


def _smi() -> dict[str, str] | None:
    """Read what ``nvidia-smi`` says of the first GPU, with units; without what it doesn't know, as on a Jetson."""
    lines = _output("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader").splitlines()
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    if len(values) != len(SMI):
        return None
    return {name: value for name, value in zip(SMI, values, strict=True) if not value.startswith("[")}


def _cuda_toolkit(versions: str) -> str | None:
    try:
        return str(json.loads(versions)["cuda"]["version"])
    except (ValueError, KeyError, TypeError):  # no toolkit, or one that says it otherwise
        return None


def _output(program: str, *arguments: str) -> str:
    """Return what a program prints; nothing where it isn't installed, fails or hangs."""
    path = shutil.which(program)
    if path is None:
        return ""
    try:
        ran = subprocess.run(
            [path, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ran.stdout if ran.returncode == 0 else ""


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.M)
    return found[1] if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on this kind of machine
        return ""
