"""Nothing is sent, and nothing is written outside the folders that are named, by anything that mmgen starts.

ONNX Runtime from 1.31 on reports to its makers: an ID of the machine and a queue of events in the user's home, a file
among the temporary ones, and a collector on the network.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from watch import NO_STRACE, has_strace, mmgen, watch

if importlib.util.find_spec("onnxruntime") is None:
    pytest.skip("ONNX Runtime is not installed", allow_module_level=True)

ASKED = ("--prompt", "red apple", "--steps", "2")
BUILT = "from mmgen.runtime import load; load('b.mmgen', 'ort-cpu', build=True).generate(steps=1)"
COMMANDS: dict[str, Sequence[str]] = {
    "generate": mmgen("generate", "b.mmgen", *ASKED, "-o", "made.npy", "--backend", "ort-cpu"),
    "verify": mmgen("verify", "b.mmgen", "--backend", "ort-cpu"),
    "doctor": mmgen("doctor", "b.mmgen"),
    "bench": mmgen("bench", "b.mmgen", "--runs", "1", "--warmup", "0", "--starts", "1", "--report", "page"),
    "build": mmgen("build", "b.mmgen", "--target", "cpu"),
    "build in a process of its own": [sys.executable, "-c", BUILT],
}


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path) -> Path:
    """The one that is named: a bundle is in it, b.mmgen."""
    shutil.copytree(bundle_folder, tmp_path / "named" / "b.mmgen")
    return tmp_path / "named"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_where_it_is_told_and_calls_nobody(folder: Path, tmp_path: Path, name: str) -> None:
    seen = watch(COMMANDS[name], tmp_path / "watched", folder)
    assert (seen.written, seen.left, seen.called) == (frozenset(), frozenset(), frozenset())


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_openvino_neither(folder: Path, tmp_path: Path) -> None:
    seen = watch(
        mmgen("generate", "b.mmgen", *ASKED, "-o", "made.npy", "--backend", "openvino"), tmp_path / "watched", folder
    )
    assert (seen.written, seen.left, seen.called) == (frozenset(), frozenset(), frozenset())


@pytest.mark.parametrize("home", [None, "/dev/null/home", "/proc"])
def test_a_home_that_is_missing_or_cannot_be_written_is_not_missed(folder: Path, home: str | None) -> None:
    environment = os.environ | {"HOME": home or ""}
    if home is None:
        del environment["HOME"]
    ran = subprocess.run(COMMANDS["generate"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (folder / "made.npy").is_file()


def test_the_environment_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry is a matter of this process's ONNX Runtime, not of what the program does else or starts."""
    from mmgen.runtime.backends.ort.importing import SWITCH, import_onnxruntime

    for value in (None, "0"):
        monkeypatch.delenv(SWITCH, raising=False)
        if value is not None:
            monkeypatch.setenv(SWITCH, value)
        import_onnxruntime()
        assert os.environ.get(SWITCH) == value


def test_where_a_program_has_imported_onnx_runtime_before_its_events_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has begun to report is the program's own doing."""
    from mmgen.runtime.backends.ort.importing import import_onnxruntime

    called: list[str] = []
    monkeypatch.setattr("onnxruntime.disable_telemetry_events", lambda: called.append("off"))
    import_onnxruntime()
    assert called == ["off"]


# That these tests see anything.


def test_onnx_runtime_by_itself_is_seen(folder: Path, tmp_path: Path) -> None:
    version = subprocess.run(
        [sys.executable, "-c", "from importlib.metadata import version as v; print(v('onnxruntime'))"],
        capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    if not version or tuple(map(int, version.split(".")[:2])) < (1, 31):
        pytest.skip(f"onnxruntime {version.strip() or 'of another name'} reports nothing")
    seen = watch([sys.executable, "-c", "import onnxruntime"], tmp_path / "watched", folder)
    if not seen.left:
        pytest.skip("this ONNX Runtime was built to report nothing")
    assert any("onnxruntime" in path for path in seen.left)


SOCKET = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('127.0.0.1', 9))"
BELOW_PYTHON = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.open(os.path.expanduser("~/below").encode(), os.O_WRONLY | os.O_CREAT, 0o600)
address = (2).to_bytes(2, "little") + (9).to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
assert libc.connect(libc.socket(2, 2, 0), address, 16) == 0
"""


@pytest.mark.parametrize("child", [False, True])
def test_what_python_does_is_seen_also_in_a_child(folder: Path, tmp_path: Path, child: bool) -> None:
    code = f"import os; open(os.path.expanduser('~/file'), 'w'); {SOCKET}"
    if child:
        code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    seen = watch([sys.executable, "-c", code], tmp_path / "watched", folder)
    assert [Path(path).name for path in seen.written] == [Path(path).name for path in seen.left] == ["file"]
    assert any("127.0.0.1" in call for call in seen.called)


def test_what_a_library_does_is_seen(folder: Path, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("written for Linux's numbers")
    seen = watch([sys.executable, "-c", BELOW_PYTHON], tmp_path / "watched", folder)
    assert [Path(path).name for path in seen.left] == ["below"]
    if not has_strace():
        pytest.skip(NO_STRACE)
    assert any("127.0.0.1" in call for call in seen.called)


