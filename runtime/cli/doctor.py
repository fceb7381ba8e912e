"""What this machine is, which backends work on it and why the others don't: ``mmgen doctor``."""

import importlib.metadata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.registry import NAMES, candidates_for, open_backend
from mmgen.runtime.backends.tensorrt.library import find_library, version
from mmgen.runtime.base import distribution
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.text_table import table
from mmgen.runtime.bench import machine
from mmgen.runtime.builds.engine_build import Flavour
from mmgen.runtime.storage.schema import Bundle

PACKAGES = (
    distribution.NAME, "numpy", "click", "tokenizers", "pillow", "av", "onnxruntime", "onnxruntime-gpu", "openvino",
    "cuda-bindings",
)  # fmt: skip
LIBRARIES: tuple[Flavour, ...] = ("tensorrt", "tensorrt-rtx")


def record(bundle: Bundle | None = None, root: Path = Path("/")) -> dict[str, Any]:
    """Everything ``mmgen doctor`` knows; None is what can't be told here.

    Args:
        bundle: what the backends are to run; without one it is told whether they can be had at all.
        root: holds proc/, etc/ and so on.
    """
    gpu, no_gpu = _try(_gpu)
    libraries = {flavour: _try(partial(_library, flavour)) for flavour in LIBRARIES}
    if bundle is None:
        reasons = {name: _reason(name, libraries, no_gpu) for name in NAMES}
    else:
        reasons = {name: _try(partial(_run, name, bundle))[1] for name in NAMES}
    packages = {name: _version(name) for name in PACKAGES}
    found = {
        "backends": [{"name": name, "works": not reason, "reason": reason} for name, reason in reasons.items()],
        "auto": bundle and next((name for name in candidates_for(bundle) if not reasons[name]), None),
        "gpu": gpu,
        "packages": packages | {flavour: installed for flavour, (installed, _) in libraries.items()},
        **machine.record(root),
    }
    return {**found, "advice": _advice(found)}


def text(found: dict[str, Any]) -> str:
    """Return the same for people; what is missing is left out, but for backends."""
    rows = [
        *((f"backend {b['name']}", "works" if b["works"] else f"not here: {b['reason']}") for b in found["backends"]),
        ("auto takes", found["auto"]),
        ("gpu", _gpu_text(found)),
        ("gpu clock", _clock_text(found["gpu_clock"], found["nvidia_smi"])),
        ("gpu temperature", found["gpu_celsius"] and f"{found['gpu_celsius']:.0f} °C"),
        ("power mode", found["power_mode"] and f"{found['power_mode']['name']} ({found['power_mode']['number']})"),
        ("nvidia driver", found["nvidia_driver"]),
        ("cuda toolkit", found["cuda_toolkit"]),
        ("system tensorrt", found["tensorrt_libraries"]),
        ("board", found["board"]),
        ("jetpack", found["jetpack"] and f"{found['jetpack']} (Jetson Linux {found['jetson_linux']})"),
        ("memory", found["memory_bytes"] and _gib(found["memory_bytes"], found["memory_available_bytes"])),
        ("cpu", f"{found['cpu'] or 'unknown'}, {found['cores']} cores to use"),
        ("system", found["system"]),
        ("python", found["python"]),
        *found["packages"].items(),
        *(("advice", line) for line in found["advice"]),
    ]
    return table([(key, value) for key, value in rows if value])


def _reason(name: str, libraries: dict[Flavour, tuple[Any, str | None]], no_gpu: str | None) -> str | None:
    """Why a backend can't be had, whatever it is to run; None: it can."""
    match name:
        case "tensorrt" | "tensorrt-rtx":
            return "; and ".join(reason for reason in (libraries[name][1], no_gpu) if reason) or None
        case "ort-cuda":
            from mmgen.runtime.backends.ort import cuda as ort_cuda

            return _try(lambda: ort_cuda.open_backend().close())[1]
        case "openvino" | "openvino-bf16":
            from mmgen.runtime.backends.openvino import backend as openvino

            return _try(lambda: openvino.open_backend(name).close())[1]
        case _:
            from mmgen.runtime.backends.ort import cpu as ort

            return _try(lambda: ort.open_backend("ort-cpu").close())[1]


def _run(name: str, bundle: Bundle) -> None:
    open_backend(name, bundle).close()


def _library(flavour: Flavour) -> str:
    return version(find_library(flavour))


def _try(question: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return the answer, or the reason why there is none."""
    try:
        return question(), None
    except MmgenError as error:
        return None, str(error)


def _gpu() -> dict[str, Any]:
    device = open_device()
    try:
        names = ("name", "compute_capability", "multiprocessors", "memory_bytes", "driver_cuda")
        return {**{name: getattr(device, name) for name in names}, "free_bytes": device.free_bytes()}
    finally:
        device.close()


def _advice(found: dict[str, Any]) -> list[str]:
    """List what would make this machine faster, or a backend work on it."""
    lines = []
    mode, clock = found["power_mode"], found["gpu_clock"]
    if mode and mode["best"] not in (None, mode["name"]):
        lines.append(f"power mode {mode['name']} limits the clocks: sudo nvpmodel -m {mode['best_number']}")
    if clock and clock["least"] != clock["most"]:
        lines.append("the GPU's clock follows its load; before you measure: sudo jetson_clocks")
    if found["tensorrt_python"] and not found["packages"]["tensorrt"]:
        lines.append(
            "TensorRT's Python module belongs to the system and is not seen from here: "
            "make the environment with python3 -m venv --system-site-packages"
        )
    return lines


def _gpu_text(found: dict[str, Any]) -> str | None:
    gpu = found["gpu"]
    return gpu and (
        f"{gpu['name']}, {gpu['compute_capability']}, {gpu['multiprocessors']} multiprocessors, "
        f"{_gib(gpu['memory_bytes'], gpu['free_bytes'])}, driver for CUDA {gpu['driver_cuda']}"
    )


def _clock_text(clock: dict[str, int] | None, smi: dict[str, str] | None) -> str | None:
    if clock:
        now, least, most = (f"{clock[name] / 1e6:.0f}" for name in ("now", "least", "most"))
        return f"{now} MHz, {'fixed' if least == most else f'from {least} to {most} MHz'}"
    if smi and "clocks.sm" in smi and "clocks.max.sm" in smi:
        return f"{smi['clocks.sm']}, up to {smi['clocks.max.sm']}"
    return None


def _gib(size: int, free: int) -> str:
    return f"{size / 2**30:.1f} GiB, {free / 2**30:.1f} free"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
