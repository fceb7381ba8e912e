"""A bundle takes its place whole or not at all, whatever was there and however the export ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import left_in
from policy import policy
from tree import PYTHON_PATH

from mmgen.export.base.place import placed
from mmgen.export.exporter import export
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.bundle import read_bundle


def old_bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "bundle.json").write_text("an older bundle")
    return folder


def test_a_failure_leaves_the_older_bundle(tmp_path: Path) -> None:
    out = old_bundle(tmp_path / "a.mmgen")
    with pytest.raises(ZeroDivisionError), placed(out, 0) as folder:
        (folder / "bundle.json").write_text("half a bundle")
        1 / 0  # noqa: B018
    assert left_in(tmp_path) == ["a.mmgen"] and (out / "bundle.json").read_text() == "an older bundle"


def test_success_replaces_it_whole(tmp_path: Path) -> None:
    out = old_bundle(tmp_path / "a.mmgen")
    (out / "graphs").mkdir()
    with placed(out, 0) as folder:
        (folder / "bundle.json").write_text("new")
        assert (out / "bundle.json").read_text() == "an older bundle"
    assert (
        left_in(tmp_path) == ["a.mmgen"]
        and left_in(out) == ["bundle.json"]
        and (out / "bundle.json").read_text() == "new"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
def test_a_folder_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9.mmgen")
    bundle = export(policy(), out, policy="fp16")
    assert bundle.folder == out and read_bundle(out) == bundle
    assert os.listdir(tmp_path) == [out.name]


def with_engines(bundle: Path) -> Path:
    (bundle / "engines" / "key").mkdir(parents=True)
    (bundle / "engines" / "key" / "step.engine").write_text("compiled")
    return bundle


def test_engines_go_over_to_the_new_bundle(tmp_path: Path) -> None:
    out = with_engines(old_bundle(tmp_path / "a.mmgen"))
    with placed(out, 0) as folder:
        (folder / "bundle.json").write_text("new")
        assert (out / "engines/key/step.engine").is_file()
    assert left_in(tmp_path) == ["a.mmgen"] and left_in(out) == ["bundle.json", "engines"]
    assert (out / "engines/key/step.engine").read_text() == "compiled"


def test_engines_go_over_even_if_the_process_was_killed_before_they_could(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with_engines(old_bundle(tmp_path / f".a.mmgen.{dead.pid}.old"))
    out = old_bundle(tmp_path / "a.mmgen")
    with pytest.raises(ZeroDivisionError), placed(out, 0):
        1 / 0  # noqa: B018
    assert left_in(tmp_path) == ["a.mmgen"] and left_in(out) == ["bundle.json", "engines"]


def test_what_killed_processes_left_is_cleared_or_put_back(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.mmgen.{dead.pid}.partial").mkdir()
    (tmp_path / f".a.mmgen.{os.getppid()}.partial").mkdir()  # alive
    (tmp_path / f".a.mmgen.{os.getpid()}.partial").mkdir()  # of a container's process with our number
    old_bundle(tmp_path / f".a.mmgen.{dead.pid}.old")  # killed between the two renames
    with pytest.raises(KeyboardInterrupt), placed(tmp_path / "a.mmgen", 0):
        raise KeyboardInterrupt
    assert left_in(tmp_path) == [f".a.mmgen.{os.getppid()}.partial", "a.mmgen"]
    assert (tmp_path / "a.mmgen" / "bundle.json").read_text() == "an older bundle"


@pytest.mark.parametrize("kind", ["file", "folder", "no parent", "file above", "space"])
def test_a_bad_place_is_refused_before_the_work(kind: str, tmp_path: Path) -> None:
    out, wanted = tmp_path / "a.mmgen", 0
    match kind:
        case "file":
            out.write_text("precious")
            message = "exists and is not a bundle"
        case "folder":
            (out / "photos").mkdir(parents=True)
            message = "exists and is not a bundle"
        case "no parent":
            out = tmp_path / "b" / "a.mmgen"
            message = "folder .*/b is not there"
        case "file above":
            (tmp_path / "b").write_text("precious")
            out = tmp_path / "b" / "a.mmgen"
            message = "folder .*/b is not there"
        case "space":
            wanted = shutil.disk_usage(tmp_path).total + 2**40
            message = "free space in .*, got .* GiB, wanted .* GiB; make room"
    before = left_in(tmp_path)
    with pytest.raises(MmgenError, match=message), placed(out, wanted):
        pytest.fail("the block was entered")
    assert left_in(tmp_path) == before


def test_a_disk_that_fills_up_is_an_error_of_ours(tmp_path: Path) -> None:
    with (
        pytest.raises(MmgenError, match=r"a\.mmgen can't be written \(No space left on device\)"),
        placed(tmp_path / "a.mmgen", 0),
    ):
        raise OSError(28, os.strerror(28))
    assert left_in(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MmgenError, match="can't be written"), placed(tmp_path / "a.mmgen", 0):
        pytest.fail("the block was entered")


@pytest.mark.parametrize(("number", "stage"), [(signal.SIGINT, "tracing step"), (signal.SIGTERM, "running torch")])
def test_an_export_that_is_ended_half_way_leaves_the_older_bundle(number: int, stage: str, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[1].split(os.pathsep)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # programs started in the background ignore it
        "from pathlib import Path; from tiny import tiny_model; from mmgen.export.exporter import export\n"
        "export(tiny_model(), Path(sys.argv[2]), policy='fp32', progress=lambda stage, _: print(stage, flush=True))"
    )
    out = old_bundle(tmp_path / "a.mmgen")
    arguments = [sys.executable, "-c", script, PYTHON_PATH, str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == stage:
                assert any(name.endswith(".partial") for name in left_in(tmp_path))
                process.send_signal(number)
                break
        assert process.wait(timeout=240) != 0
    assert left_in(tmp_path) == ["a.mmgen"] and (out / "bundle.json").read_text() == "an older bundle"


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)], ids=["Ctrl-C", "SIGTERM"]
)
def test_an_end_that_a_library_swallows_is_not_forgotten(
    number: int, error: type[BaseException], tmp_path: Path
) -> None:
    """Python raises in whatever runs, and what runs may be a callback whose caller ignores errors."""
    out = old_bundle(tmp_path / "a.mmgen")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # programs started in the background ignore it
    try:
        with pytest.raises(error), placed(out, 0) as folder:
            (folder / "bundle.json").write_text("a newer bundle")
            with contextlib.suppress(error):
                signal.raise_signal(number)
    finally:
        signal.signal(signal.SIGINT, before)
    assert left_in(tmp_path) == ["a.mmgen"] and (out / "bundle.json").read_text() == "an older bundle"
