"""Without a CUDA device nothing of TensorRT is ever called, because calling it there ends the process.

TensorRT's lean runtime is real: the library that a desktop or a Jetson has, without its compiler.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from api import CUDA, bindings

from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.base.errors import MmgenError

MMGEN = "from mmgen.runtime.cli.main import main; main()"
NAIVE = """
import tensorrt
runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
print("a runtime:", runtime, flush=True)
print("an engine:", runtime.deserialize_cuda_engine(bytes(4096)))
"""
LEAN = """
from tensorrt_lean_bindings import *
from tensorrt_lean_bindings import __version__
"""
FATAL = """
import os
def Runtime(*_):
    os.abort()
Builder = Refitter = OnnxParser = Runtime
"""


@pytest.fixture(scope="module", autouse=True)
def no_device() -> None:
    try:
        open_device().close()
    except MmgenError:
        return
    pytest.skip("there is a CUDA device here")


def environment(folder: Path, code: str, cuda: str | None = None) -> dict[str, str]:
    """In which ``import tensorrt`` finds the lean runtime, and a certain release of cuda-bindings."""
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt" / "__init__.py").write_text(code)
    paths = [folder, bindings("lean"), *([bindings(cuda)] if cuda else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}


@pytest.fixture(params=[None, CUDA[0]], ids=lambda cuda: cuda or "cuda as installed")
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """TensorRT is installed; whoever makes one of its objects ends the process.

    The oldest of CUDA's bindings says in its own way that there is no driver.
    """
    return environment(tmp_path, LEAN + FATAL, request.param)


def run(code: str, environment: dict[str, str], *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_tensorrt_gives_a_runtime_without_a_device_and_dies_when_it_is_used(tmp_path: Path) -> None:
    ran = run(NAIVE, environment(tmp_path, LEAN))
    assert "a runtime: <tensorrt" in ran.stdout and "an engine:" not in ran.stdout
    assert ran.returncode == -signal.SIGSEGV


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "BUNDLE", "--backend=tensorrt", "-o", "OUT"),
        ("verify", "BUNDLE", "--backend=tensorrt"),
        ("build", "BUNDLE", "--target=host"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_says_in_one_line_that_there_is_no_device(
    arguments: tuple[str, ...], watched: dict[str, str], bundle_folder: Path, tmp_path: Path
) -> None:
    names = {"BUNDLE": bundle_folder, "OUT": tmp_path / "out.png"}
    ran = run(MMGEN, watched, *(names.get(argument, argument) for argument in arguments))
    assert ran.returncode == 1, ran.stderr
    assert ran.stdout == ""
    (line,) = [line for line in ran.stderr.splitlines() if line.startswith("Error: ")]
    assert "no NVIDIA driver" in line and "; install one" in line, "what is wrong, and what to do"
    assert "Traceback" not in ran.stderr


def test_the_library_raises_the_same(watched: dict[str, str], bundle_folder: Path) -> None:
    code = (
        "import sys; from mmgen.runtime import load; from mmgen.runtime.base.errors import MmgenError\n"
        "try: load(sys.argv[1], backend='tensorrt')\n"
        "except MmgenError as error: print(error)"
    )
    ran = run(code, watched, bundle_folder)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("no NVIDIA driver")


def test_auto_takes_the_cpu_and_the_doctor_says_why(watched: dict[str, str], bundle_folder: Path) -> None:
    ran = run(MMGEN, watched, "doctor", bundle_folder, "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    backends = {backend["name"]: backend for backend in found["backends"]}
    assert found["auto"] in ("openvino", "ort-cpu")
    assert not backends["tensorrt"]["works"] and "no NVIDIA driver" in backends["tensorrt"]["reason"]
    assert found["packages"]["tensorrt"] == "11.4.0.106", "it is installed, and that alone isn't enough"
