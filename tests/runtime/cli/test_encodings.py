"""Names of files and prompts that are no UTF-8, and outputs that can't print a letter: what was made is told."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmgen.runtime import MmgenError, load
from mmgen.runtime.building import MMGEN
from mmgen.runtime.cli.terminal import say
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.verify import verify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
BYTES = os.fsdecode(b"caf\xe9.mmgen")  # a folder named on an old system
ASCII_ONLY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def folder(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle whose name is no text, in the working folder."""
    shutil.copytree(bundle_folder, tmp_path / BYTES, ignore=shutil.ignore_patterns("engines", "optimised"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / BYTES


def mmgen(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*MMGEN, *arguments], capture_output=True, env=os.environ | environment, check=False)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"PYTHONIOENCODING": "utf-8"}, "рис.png".encode()),
        ({"PYTHONIOENCODING": "cp1252"}, rb"\u0440\u0438\u0441.png"),
        ({"PYTHONIOENCODING": "ascii"}, rb"\u0440\u0438\u0441.png"),
        ({"PYTHONIOENCODING": "cp1251"}, "рис.png".encode("cp1251")),
        ({"LC_ALL": "C"}, "рис.png".encode()),
        (ASCII_ONLY, "рис.png".encode()),  # to Python, bytes
    ],
    ids=str,
)
def test_a_picture_is_told_wherever_it_is_told(folder: Path, environment: dict[str, str], told: bytes) -> None:
    ran = mmgen("generate", BYTES, "--prompt", "red", "--steps=1", "-o", "рис.png", **environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0] == told
    assert (folder.parent / "рис.png").is_file()


@pytest.mark.parametrize("environment", [*({"PYTHONIOENCODING": name} for name in ("cp1252", "ascii")), ASCII_ONLY])
def test_machines_are_told_names_that_they_can_open(folder: Path, environment: dict[str, str]) -> None:
    output = os.fsdecode(b"\xe9\xe8/")
    ran = mmgen("generate", BYTES, "--prompt", "ж", "--steps=1", "-o", output, "--json", **environment)
    assert ran.returncode == 0, ran.stderr
    record = json.loads(ran.stdout)
    assert record["request"]["conditions"] == {"prompt": ["ж"]}, "also where the locale has no such letter"
    (file,) = record["files"]
    assert os.fsencode(file) == b"\xe9\xe8/000.png" and Path(file).is_file()


@pytest.mark.parametrize("command", ["inspect", "verify", "doctor"])
def test_a_bundle_may_lie_in_a_folder_of_any_name(folder: Path, command: str) -> None:
    ran = mmgen(command, BYTES, PYTHONIOENCODING="cp1252")
    assert ran.returncode == 0, ran.stderr


def test_errors_can_be_printed(folder: Path) -> None:
    for environment in ({"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, ASCII_ONLY):
        ran = mmgen("inspect", BYTES + "x", **environment)
        assert ran.returncode == 1
        assert ran.stderr == rb"Error: bundle caf\udce9.mmgenx is not there; make one with mmgen-export" + b"\n"
        ran = mmgen("generate", BYTES, "--prompt", os.fsdecode(b"caf\xe9"), "-o", "x.png", **environment)
        assert ran.returncode == 1
        assert b"condition 'prompt': letter 4, got '\\udce9', wanted text that UTF-8" in ran.stderr.splitlines()[-1]
    with pytest.raises(MmgenError) as caught:
        read_bundle(BYTES + "x")
    assert str(caught.value).encode() == rb"bundle caf\udce9.mmgenx is not there; make one with mmgen-export"


def test_the_library_takes_it_too(folder: Path, bundle_folder: Path, cpu: str) -> None:
    asked = {"prompt": "red", "steps": 2}
    with load(bundle_folder, cpu) as generator:
        wanted = generator.generate(**asked).latents
    for given in (folder, BYTES, os.fsencode(BYTES)):
        with load(given, cpu) as generator:
            assert np.array_equal(generator.generate(**asked).latents, wanted)
    assert verify(folder, cpu)


def test_graphs_are_optimised_there(folder: Path) -> None:
    ran = mmgen("build", BYTES, "--target", "cpu")
    assert ran.returncode == 0, ran.stderr
    assert os.fsencode(BYTES) in ran.stdout
    with load(folder, "ort-cpu") as generator:
        generator.generate(prompt="red", steps=1)


def test_a_path_for_libraries_is_the_same_where_it_can_be(tmp_path: Path) -> None:
    with as_text(tmp_path / "рис") as path:
        assert path == tmp_path / "рис"
    (tmp_path / BYTES).mkdir()
    (tmp_path / BYTES / "a").write_text("text")
    with as_text(tmp_path / BYTES / "a") as path:
        str(path).encode()
        assert path.read_text() == "text" and path.name == "a"
    assert not path.exists(), "nothing stays open"


@pytest.mark.parametrize(
    ("encoding", "text", "told"),
    [
        ("ascii", "é", rb"\xe9"),
        ("cp1252", "é рис", b"\xe9 " + rb"\u0440\u0438\u0441"),
        ("utf-8", "a\udce9b\ud83d", b"a\xe9b" + rb"\ud83d"),
        ("latin-1", "\udce9\udcff", b"\xe9\xff"),
    ],
)
def test_letters_that_an_encoding_lacks(
    encoding: str, text: str, told: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    say(text)
    assert raw.getvalue() == told + b"\n"


def test_a_stream_without_bytes_gets_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", written := io.StringIO())
    say("рис")
    assert written.getvalue() == "рис\n"
