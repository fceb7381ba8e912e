"""What README.md shows works as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tree import ROOT

from mmgen.runtime.cli.png import png

README = (ROOT / "README.md").read_text(encoding="utf-8")
BUNDLE = "build/emoji.mmgen"
PROGRAMS = {
    "mmgen": [sys.executable, "-c", "from mmgen.runtime.cli.main import main; main()"],
    "mmgen-export": [sys.executable, "-c", "from mmgen.export.cli import main; main()"],
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


LINES = "".join(blocks("sh")).splitlines()
COMMANDS = [line for line in LINES if line.startswith("mmgen ") and BUNDLE in line]


@pytest.fixture
def here(bundle_folder: Path, tmp_path: Path) -> Path:
    """A folder where the small test bundle stands for the embedded model, with a picture that was made before."""
    shutil.copytree(bundle_folder, tmp_path / BUNDLE, ignore=shutil.ignore_patterns("engines"))
    (tmp_path / "build/pizza.png").write_bytes(png(np.zeros((16, 16, 3), np.uint8)))
    return tmp_path


def test_the_library_as_shown(here: Path) -> None:
    (example,) = [block for block in blocks("python") if "load(" in block]
    ran = subprocess.run([sys.executable, "-c", example], cwd=here, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("(1, 16, 16, 3) uint8")


def run(command: str, folder: Path) -> str:
    """What a command prints; it must do well."""
    program, *arguments = shlex.split(command, comments=True)
    ran = subprocess.run([*PROGRAMS[program], *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_as_shown(here: Path, command: str) -> None:
    if command.startswith("mmgen build"):
        pytest.importorskip("tensorrt_rtx", reason="engines for desktop GPUs need TensorRT for RTX")
    if "--image" in command:
        pytest.importorskip("PIL", reason="pictures are read with Pillow")
    assert run(command, here)


def test_a_model_of_one_s_own_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting needs torch")
    (code,) = [block for block in blocks("python") if "# my_model.py" in block]
    (tmp_path / "my_model.py").write_text(code)
    (commands,) = [block.splitlines() for block in blocks("sh") if "my_model.py" in block]
    for command in commands:
        run(command, tmp_path)
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_something_is_shown() -> None:
    assert len(COMMANDS) == 12


def test_files_it_names_are_there() -> None:
    for file in re.findall(r"!\[.*?\]\((.*?)\)", README) + re.findall(r"`((?:examples|benchmarks)/\S+)`", README):
        assert (ROOT / file).is_file(), file
