"""What TensorRT's Python API has, release by release, as the real bindings say.

The bindings are read where ``MMGEN_TEST_BINDINGS`` names a folder of them (``make test`` does), a folder a version;
they are imported in a process of their own against libraries that hold no code.  TensorRT for RTX is read where it is
installed, and its libraries are real.
"""

import functools
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import stub_library

BINDINGS = "MMGEN_TEST_BINDINGS"
TENSORRT = ("10.3.0", "10.7.0", "10.9.0.34", "10.13.3.9", "11.4.0.106")  # of tensorrt-cu12-bindings
RTX = "rtx"  # TensorRT for RTX, whichever is installed
VERSIONS = (*TENSORRT, RTX)
CUDA = ("cuda-12.8.0", "cuda-13.0.3", "cuda-13.5.0")  # of cuda-bindings, beside the one that is installed

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# Symbols whose addresses the bindings take when they are imported; the others are looked up when they are called.
SYMBOLS = ("getPluginRegistry", "getBuilderPluginRegistry", "initLibNvInferPlugins", "getNvOnnxParserVersion")

DUMP = """
import importlib, inspect, json, os, sys
sys.setdlopenflags(os.RTLD_LAZY)
module = importlib.import_module(sys.argv[1])
classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
ours = lambda owner: sorted(set(dir(owner)) - set(dir(object)))
methods = {f"{name}.{m}": getattr(c, m).__doc__ for name, c in classes.items() for m in ours(c) + ["__init__"]
           if callable(getattr(c, m))}
json.dump({
    "version": module.__version__,
    "names": {"": sorted(vars(module)), **{name: ours(c) for name, c in classes.items()}},
    "members": {name: {k: int(v) for k, v in c.__members__.items()} for name, c in classes.items()
                if hasattr(c, "__members__")},
    "signatures": {name: doc for name, doc in methods.items() if doc},
}, sys.stdout)
"""


def surface(version: str) -> dict[str, frozenset[str]]:
    """Read the names of a release, one of ``VERSIONS``.

    Returns:
        "" for the module's own names, and for each class its attributes, members of enumerations among them.

    Skips the test where no bindings are named, or TensorRT for RTX isn't installed.
    """
    return {owner: frozenset(names) for owner, names in _dump(version)["names"].items()}


def own_version(version: str) -> str:
    """Read what the module of a release says of itself, ``__version__``."""
    return str(_dump(version)["version"])


def members(version: str) -> dict[str, dict[str, int]]:
    """Read the numbers of every enumeration's members, such as ``["BuilderFlag"]["TF32"]``."""
    return dict(_dump(version)["members"])


def signatures(version: str) -> dict[str, tuple[str, ...]]:
    """How methods may be called, by "Class.method" and as pybind11 writes it; several where it is overloaded.

    For example "set_input_shape(self: tensorrt_bindings.tensorrt.IExecutionContext, name: str, shape: ...) -> bool".
    Methods that were written in Python have none.
    """
    found = {}
    for name, text in _dump(version)["signatures"].items():
        method = name.partition(".")[2]
        lines = [line.strip().partition(". ")[2] if line.strip()[:1].isdigit() else line for line in text.splitlines()]
        if calls := tuple(line for line in lines if line.startswith(f"{method}(") and "->" in line):
            found[name] = calls
    return found


def bindings(version: str) -> Path:
    """Return the folder to put on ``sys.path`` for a release of ``TENSORRT`` or another package fetched with them."""
    if BINDINGS not in os.environ:
        pytest.skip(f"no bindings of TensorRT are named in {BINDINGS}, as make test does")
    folder = Path(os.environ[BINDINGS]).resolve() / version
    if not folder.is_dir():
        pytest.fail(f"{folder} is not there; make bindings fetches it")
    return folder


@functools.cache
def _dump(version: str) -> Any:
    if version == RTX:
        if importlib.util.find_spec("tensorrt_rtx") is None:
            pytest.skip("TensorRT for RTX is not installed")
        return _run("tensorrt_rtx", {})
    folder = bindings(version)
    if platform.machine() not in stub_library.MACHINES or sys.platform != "linux":
        pytest.skip(f"bindings of TensorRT are imported on Linux only, on {' or '.join(stub_library.MACHINES)}")
    with tempfile.TemporaryDirectory() as libraries:
        for name in LIBRARIES:
            file = Path(libraries) / f"lib{name}.so.{version.partition('.')[0]}"
            stub_library.write(file, SYMBOLS, platform.machine())
        return _run("tensorrt_bindings", {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": str(folder)})


def _run(module: str, environment: dict[str, str]) -> Any:
    ran = subprocess.run(
        [sys.executable, "-c", DUMP, module],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)
