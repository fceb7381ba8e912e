"""What README.md and the pages in docs/ show works as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from documents import PAGES, README, blocks, commands, prose
from recorded import png
from tree import ROOT

from mmgen.export.cli import main as export_command
from mmgen.runtime.cli.main import main as command

BUNDLE = "build/emoji.mmgen"
PROGRAMS = {
    "mmgen": [sys.executable, "-c", "from mmgen.runtime.cli.main import main; main()"],
    "mmgen-export": [sys.executable, "-c", "from mmgen.export.cli import main; main()"],
}
MODEL = "# my_model.py"  # begins an example that is a file of the user's
SHOWN = {line: page.name for page in PAGES for line in commands(page)}
RUN = [line for line in SHOWN if line.startswith("mmgen ") and BUNDLE in line]  # the others need models or devices
SEVERAL = "# my_models.py"  # likewise
ANY = "any.mmgen"  # a bundle of several outputs
EXAMPLES = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(blocks(page, "python"), 1)
    if not any(other in block for other in (MODEL, SEVERAL, ANY))
]
MENTIONED = {text: page.name for page in PAGES for text in re.findall(r"`(mmgen(?:-export)? [^`]+)`", prose(page))}


@pytest.fixture
def here(bundle_folder: Path, tmp_path: Path) -> Path:
    """A folder where the small test bundle stands for the embedded model, with a picture that was made before."""
    shutil.copytree(bundle_folder, tmp_path / BUNDLE, ignore=shutil.ignore_patterns("engines"))
    (tmp_path / "build/pizza.png").write_bytes(png(np.zeros((16, 16, 3), np.uint8)))
    return tmp_path


@pytest.fixture
def beside_any(exported_once: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with a bundle of several outputs, and two pictures."""
    pytest.importorskip("torch", reason="exporting needs torch")
    from four_outputs import PICTURE, four_outputs
    from PIL import Image

    shutil.copytree(exported_once(four_outputs, "fp16"), tmp_path / ANY)
    for i, name in enumerate(("cat.jpg", "dog.jpg")):
        Image.fromarray(np.full(PICTURE.shape, 40 + 90 * i, np.uint8)).save(tmp_path / name)
    return tmp_path


def play(example: str, folder: Path) -> str:
    ran = subprocess.run([sys.executable, "-c", example], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_library_as_the_first_page_shows_it(here: Path) -> None:
    (example,) = blocks(README, "python")
    assert play(example, here).startswith("(1, 16, 16, 3) uint8")


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_library_as_shown(here: Path, example: str) -> None:
    said = play(example, here)
    assert said or "print(" not in example


def run(line: str, folder: Path) -> str:
    """What a command prints; it must do well."""
    program, *arguments = shlex.split(line, comments=True)
    ran = subprocess.run([*PROGRAMS[program], *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("line", RUN)
def test_the_command_line_as_shown(here: Path, line: str) -> None:
    if "--target sm" in line:
        pytest.importorskip("tensorrt_rtx", reason="engines for desktop GPUs need TensorRT for RTX")
    if "--image" in line:
        pytest.importorskip("PIL", reason="pictures are read with Pillow")
    assert run(line, here)


def test_a_bundle_of_several_outputs_as_shown(beside_any: Path) -> None:
    examples = [block for page in PAGES for block in blocks(page, "python") if ANY in block]
    lines = [line for line in SHOWN if ANY in line]
    assert examples and len(lines) == 4
    for example in examples:
        assert play(example, beside_any)
    assert (beside_any / "cat.wav").read_bytes().startswith(b"RIFF")
    for line in lines:
        assert run(line, beside_any)


def test_a_model_of_one_s_own_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting needs torch")
    page = ROOT / "docs" / "exporting.md"
    (code,) = [block for block in blocks(page, "python") if MODEL in block]
    (tmp_path / "my_model.py").write_text(code)
    (lines,) = [block.splitlines() for block in blocks(page, "sh") if "my_model.py" in block]
    for line in lines:
        run(line, tmp_path)
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_of_several_outputs_as_shown(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting needs torch")
    image = pytest.importorskip("PIL.Image", reason="pictures are read with Pillow")
    page = ROOT / "docs" / "exporting.md"
    (code,) = [block for block in blocks(page, "python") if SEVERAL in block]
    (tmp_path / "my_models.py").write_text(code)
    image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "in.png")
    (lines,) = [block.splitlines() for block in blocks(page, "sh") if "my_models.py" in block]
    for line in lines:
        run(f"{line} --no-engines" if line.startswith("mmgen-export") else line, tmp_path)
    assert (tmp_path / "plan.csv").read_text().startswith("x,y,grip\n")


def test_something_is_shown() -> None:
    assert len(RUN) == 14
    assert len(EXAMPLES) == 6


def found(program: str, arguments: list[str]) -> tuple[click.Command, list[str]]:
    """The command that a line runs, and what is left for it."""
    if program == "mmgen-export":
        return export_command, arguments
    chosen = command.get_command(click.Context(command), arguments[0])
    assert chosen, arguments[0]
    return chosen, arguments[1:]


@pytest.mark.parametrize("line", SHOWN)
def test_every_command_that_is_shown_is_understood(line: str) -> None:
    chosen, arguments = found(*_split(line))
    chosen.make_context(line, arguments)


@pytest.mark.parametrize("words", MENTIONED)
def test_every_command_that_is_mentioned_has_these_options(words: str) -> None:
    chosen, arguments = found(*_split(words))
    known = {option for parameter in chosen.params for option in parameter.opts} | {"--help"}
    assert {argument for argument in arguments if argument.startswith("-")} <= known


def _split(line: str) -> tuple[str, list[str]]:
    program, *arguments = shlex.split(line, comments=True)
    return program, arguments
