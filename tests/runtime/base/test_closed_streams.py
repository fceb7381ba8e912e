"""Commands whose stdout or stderr is closed, full or read by nobody make what they make, and exit as they exit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="what a POSIX shell does with streams")

MMGEN = (sys.executable, "-c", "from mmgen.runtime.cli.main import main; main()")
CPU = ("--backend", "ort-cpu", "--threads", "1")
ASKED = ("--prompt", "red", "--class-id", "1", "--steps", "2", *CPU)
DEAF = {
    "stderr closed": ">said 2>&-",
    "stderr full": ">said 2>/dev/full",
    "stdout closed": ">&- 2>said",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
}
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")


def run(streams: str, *arguments: str) -> int:
    return subprocess.run(["sh", "-c", f'"$@" {streams}', "sh", *MMGEN, *arguments], check=False).returncode


@pytest.fixture
def picture(bundle_copy: Path) -> Path:
    assert run(">said 2>&1", "generate", "b.mmgen", *ASKED, "-o", "wanted.png") == 0
    return bundle_copy.with_name("wanted.png")


@FULL
@pytest.mark.parametrize("how", DEAF)
def test_a_picture_is_made_whoever_listens(picture: Path, how: str) -> None:
    assert run(DEAF[how], "generate", "b.mmgen", *ASKED, "-o", "x.png") == 0
    assert Path("x.png").read_bytes() == picture.read_bytes()
    assert {path.name for path in Path.cwd().iterdir()} - {"said"} == {"b.mmgen", "wanted.png", "x.png"}


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_picture_is_made_if_the_reader_has_gone(picture: Path, stream: str) -> None:
    gone, end = os.pipe()
    os.close(gone)
    with Path("said").open("wb") as said:
        listeners = {"stdout": said, "stderr": said} | {stream: end}
        command = [*MMGEN, "generate", "b.mmgen", *ASKED, "-o", "x.png"]
        ran = subprocess.run(command, **listeners, check=False)  # type: ignore[call-overload]
    os.close(end)
    assert ran.returncode == 0
    assert Path("x.png").read_bytes() == picture.read_bytes()


@FULL
def test_a_result_that_cannot_be_printed_is_an_error_and_the_picture_is_there(picture: Path) -> None:
    assert run(">/dev/full 2>said", "generate", "b.mmgen", *ASKED, "-o", "x.png") == 1
    said = Path("said").read_text().splitlines()[-1]
    assert said.startswith("Error: the result can't be printed (No space left on device); send stdout to")
    assert Path("x.png").read_bytes() == picture.read_bytes()


@FULL
@pytest.mark.parametrize("how", DEAF)
def test_a_failure_has_its_exit_code_whoever_listens(bundle_copy: Path, how: str) -> None:
    assert run(DEAF[how], "generate", "b.mmgen", *ASKED, "--solver", "none", "-o", "x.png") == 1
    assert not Path("x.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stderr closed", "both closed"])
@pytest.mark.parametrize("command", ["inspect", "verify", "doctor", "bench", "build"])
def test_so_it_is_with_every_command(bundle_copy: Path, command: str, how: str) -> None:
    more = {
        "bench": ("--runs", "1", "--warmup", "0", "--steps", "1", "--starts", "1", "-o", "a.json", *CPU),
        "build": ("--target", "cpu"),
        "verify": CPU,
    }  # fmt: skip
    assert run(DEAF[how], command, "b.mmgen", *more.get(command, ())) == 0
    if command == "bench":
        assert json.loads(Path("a.json").read_text())
    if command == "build":
        assert list(Path("b.mmgen/optimised").iterdir())


def test_what_a_library_complains_of_is_not_written_into_a_file() -> None:
    """The next file that is opened would have the number of a stream that was closed."""
    script = (
        "import os, tempfile; from mmgen.runtime.base.standard_streams import open_closed_streams\n"
        "open_closed_streams()\n"
        "with tempfile.TemporaryFile() as file:\n"
        "    for number in (0, 1, 2):\n"
        "        os.write(number, b'a complaint')\n"
        "    assert file.fileno() > 2 and file.read() == b''\n"
        "    os._exit(7)\n"
    )
    closed = ["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(closed, check=False).returncode == 7
