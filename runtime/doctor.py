"""What this machine is and which backends work on it: ``mmgen doctor``."""

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from mmgen.runtime.backend import NAMES, open_backend
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.terminal import table

PACKAGES = ("mmgen", "numpy", "click", "onnxruntime", "onnxruntime-gpu", "tokenizers", "tensorrt")
JETPACK = {35: 5, 36: 6, 38: 7}  # major release of Jetson Linux: major release of JetPack


def record(root: Path = Path("/")) -> dict[str, Any]:
    """Everything ``mmgen doctor`` knows; None is what can't be told here.  ``root`` holds proc/ and etc/."""
    memory = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"), re.M))
    return {
        "backends": [_backend(name) for name in NAMES],
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _first(r"^model name\s*:\s*(.+)$", _read(root / "proc/cpuinfo")) or platform.processor() or None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": int(memory["MemTotal"]) * 1024 if "MemTotal" in memory else None,
        "memory_available_bytes": int(memory["MemAvailable"]) * 1024 if "MemAvailable" in memory else None,
        "board": _read(root / "proc/device-tree/model").strip("\0\n") or None,
        **_jetson(_read(root / "etc/nv_tegra_release")),
        "nvidia_driver": _first(r"Module.*?\s(\d+\.\d[\d.]*)\s", _read(root / "proc/driver/nvidia/version")),
    }


def text(found: dict[str, Any]) -> str:
    """The same for people; what isn't there is left out, but for backends."""
    gib = {key: f"{found[key] / 2**30:.1f} GiB" for key in ("memory_bytes", "memory_available_bytes") if found[key]}
    rows = [
        *((f"backend {b['name']}", "works" if b["works"] else f"not here: {b['reason']}") for b in found["backends"]),
        *((name, version) for name, version in found["packages"].items() if version),
        ("python", found["python"]),
        ("system", found["system"]),
        ("cpu", f"{found['cpu'] or 'unknown'}, {found['cores']} cores to use"),
        ("memory", f"{gib.get('memory_bytes')}, {gib.get('memory_available_bytes')} free" if len(gib) == 2 else None),
        ("board", found["board"]),
        ("jetson linux", found["jetson_linux"]),
        ("jetpack", found["jetpack"] and f"{found['jetpack']}.x"),
        ("nvidia driver", found["nvidia_driver"]),
    ]
    return table([(key, value) for key, value in rows if value])


def _backend(name: str) -> dict[str, Any]:
    try:
        open_backend(name, threads=None).close()
    except MmgenError as error:
        return {"name": name, "works": False, "reason": str(error)}
    return {"name": name, "works": True, "reason": None}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _jetson(release: str) -> dict[str, Any]:
    """From ``# R36 (release), REVISION: 4.3, GCID: ...``."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    if not found:
        return {"jetson_linux": None, "jetpack": None}
    return {"jetson_linux": f"{found[1]}.{found[2]}", "jetpack": JETPACK.get(int(found[1]))}


def _first(pattern: str, text: str) -> str | None:
    found = re.search(pattern, text, re.M)
    return found[1] if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not on this kind of machine
        return ""
