"""``mmgen build`` and what ``mmgen inspect`` says of engines; the compiler is another matter, but for the last test."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import done, mmgen
from manifests import edit
from tree import PYTHON_PATH

from mmgen.engines import builder, targets
from mmgen.engines.targets import Possible, Target
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import GraphReport, Place
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import sha256

ORIN = Place("tensorrt", "10.3.0.30", ("sm87",), "linux aarch64", "12.6", "Orin", 16, 15)
REPORT = GraphReport(12, 9, 2, 3000, 1000, (), 1.5, 2**30)


class Machine:
    """What there is to build with; a test says so.  Compiling is writing a few bytes."""

    def __init__(self) -> None:
        self.host: Place | None = ORIN
        self.rtx: str | None = "1.7.1.116"
        self.fails: Exception | None = None
        self.compiled: list[str] = []
        self.jobs: list[Any] = []

    def parse(self, names: Any) -> Target:
        if tuple(names) == ("host",):
            if self.host is None:
                raise MmgenError("no CUDA device", remedy="install a driver")
            return Target(self.host)
        if self.rtx is None:
            raise MmgenError("TensorRT for RTX is not installed", remedy="install a compiler")
        if wrong := [name for name in names if not name.startswith("sm")]:
            raise MmgenError("target", got=repr(wrong[0]), wanted="host sm86 sm89")
        return Target(Place("tensorrt-rtx", self.rtx, tuple(sorted(names))))

    def possible(self) -> Possible:
        if self.host:
            return Possible(("host",), "")
        if self.rtx:
            return Possible(("sm86", "sm89"), "portable engines; no CUDA device")
        return Possible((), "no engines for this machine (no CUDA device); install a compiler")

    def compile(self, job: Any, report: Callable[[float], None], *, expected: int) -> GraphReport:
        self.jobs.append(job)
        if self.fails and job.role == "decode":
            Path(job.engine).write_bytes(b"half an eng")
            raise self.fails
        self.compiled.append(job.role)
        Path(job.engine).write_bytes(f"{job.role} for {job.compute_capabilities}".encode() * 100)
        report(1.0)
        return replace(REPORT, islands=job.islands)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(targets, "parse", machine.parse)
    monkeypatch.setattr(targets, "possible", machine.possible)
    monkeypatch.setattr(builder, "compile_apart", machine.compile)
    return machine


@pytest.fixture(autouse=True)
def here(bundle_copy: Path) -> Path:
    return bundle_copy


def failed(*arguments: str) -> str:
    """Return the line that a failing command prints."""
    result = mmgen(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr.splitlines()[-1]


def built(*arguments: str) -> Any:
    return json.loads(done("build", "b.mmgen", *arguments, "--json").stdout)


def engines(here: Path) -> list[str]:
    return sorted(os.listdir(here / "engines"))


# Building


def test_every_graph_is_compiled_and_reported(machine: Machine, here: Path) -> None:
    result = done("build", "b.mmgen")
    roles = list(read_bundle(here).graphs)
    assert machine.compiled == roles
    header, *rows = [line.split() for line in result.stdout.split("\n\n")[0].splitlines()]
    assert header[:2] == ["graph", "layers"]
    assert [row[0] for row in rows] == [*roles, "all"]
    assert all(row[1:5] == ["12", "9", "2", "75.0%"] for row in rows[:-1])
    assert rows[-1][1] == str(12 * len(roles)) and rows[-1][4] == "75.0%"
    assert rows[-1][-2:] == [f"{1.5 * len(roles):.1f}", "1024"], "times add up, peaks don't"
    key, _timings = engines(here)
    assert f"b.mmgen/engines/{key}: built for TensorRT 10.3.0.30, Orin (sm87), CUDA 12.6" in result.stdout
    stages = [line.partition(" (about ")[0] for line in result.stderr.splitlines()]
    assert stages == ["reading b.mmgen", *(f"compiling {role}" for role in roles), "done"]


def test_islands_are_named_with_the_exporter_s_reasons(machine: Machine, here: Path) -> None:
    said = done("build", "b.mmgen").stdout
    islands = read_bundle(here).precision.islands
    assert islands
    for island in islands:
        assert f"{island.graph}: {island.reason}: " in said and island.tensor in said


def test_what_was_built_is_found_again(machine: Machine, here: Path) -> None:
    first = built()
    again = built()
    assert (first["reused"], again["reused"]) == (False, True)
    assert first["build"] == again["build"] and first["folder"] == again["folder"]
    assert "reused, built 20" in done("build", "b.mmgen").stdout
    assert len(machine.compiled) == len(read_bundle(here).graphs)


def test_json_is_the_sidecar_and_where_it_lies(machine: Machine, here: Path) -> None:
    record = built()
    assert set(record) == {"bundle", "folder", "reused", "build"}
    assert record["build"] == json.loads(Path(record["folder"], "build.json").read_text())


def test_several_targets_are_one_build_for_all_of_them(machine: Machine, here: Path) -> None:
    record = built("--target", "sm89", "--target", "sm86")
    assert record["build"]["identity"]["place"]["compute_capabilities"] == ["sm86", "sm89"]
    assert {job.compute_capabilities for job in machine.jobs} == {("sm86", "sm89")}


def test_options_reach_the_compiler_and_make_another_build(machine: Machine, here: Path) -> None:
    plain = built()
    record = built("--axis", "B=2:4:6", "--axis", "G=2", "--workspace", "512", "--optimization-level", "5")
    options = record["build"]["identity"]["options"]
    assert (options["workspace_mib"], options["optimization_level"]) == (512, 5)
    assert options["profiles"][-1]["B"] == {"min": 2, "opt": 4, "max": 6}
    assert options["profiles"][-1]["G"] == {"min": 2, "opt": 2, "max": 2}
    assert machine.jobs[-1].workspace_mib == 512
    assert plain["folder"] != record["folder"] and len(engines(here)) == 3, "with the device's timings"


def test_without_a_gpu_portable_engines_are_built_and_stderr_says_why(machine: Machine) -> None:
    machine.host = None
    result = done("build", "b.mmgen")
    assert "built for TensorRT for RTX 1.7.1.116, sm86 sm89" in result.stdout
    assert "building for sm86 sm89: portable engines; no CUDA device" in result.stderr


# Failing


def test_with_nothing_to_build_with_one_line_says_how_to_get_there(machine: Machine, here: Path) -> None:
    machine.host = machine.rtx = None
    assert failed("build", "b.mmgen") == (
        "Error: no engines for this machine (no CUDA device); install a compiler"
    )
    assert failed("build", "b.mmgen", "--target=host") == "Error: no CUDA device; install a driver"
    assert not (here / "engines").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.mmgen"], "bundle nowhere.mmgen is not there"),
        (["b.mmgen", "--target", "mars"], "target, got 'mars', wanted host sm86 sm89"),
        (["b.mmgen", "--axis", "Q=2"], "axis, got 'Q', wanted B or G"),
        (["b.mmgen", "--axis", "R=2"], "axis R is G times B"),
        (["b.mmgen", "--axis", "B=3:2:1"], "axis B, got min 3, opt 2, max 1"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_a_bad_request_is_one_line(machine: Machine, here: Path, arguments: list[str], words: str) -> None:
    assert words in failed("build", *arguments)
    assert not machine.compiled and not (here / "engines").exists()


@pytest.mark.parametrize(
    "arguments",
    ["", "b.mmgen --axis=B", "b.mmgen --axis=B=x", "b.mmgen --axis=B=1:2", "b.mmgen --axis=B=1:2:3:4",
     "b.mmgen --workspace=0", "b.mmgen --optimization-level=6", "b.mmgen other.mmgen"],
)  # fmt: skip
def test_wrong_usage_is_2(machine: Machine, arguments: str) -> None:
    result = mmgen("build", *arguments.split())
    assert result.exit_code == 2
    assert "Usage: mmgen build" in result.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MmgenError("graph decode: the compiler crashed"), "Error: graph decode: the compiler crashed"),
        (OSError(28, os.strerror(28)), "can't be written (No space left on device); make room, or copy the bundle"),
    ],
    ids=["compiler", "disk"],
)
def test_a_build_that_fails_leaves_the_builds_that_were_there(
    machine: Machine, here: Path, error: Exception, words: str
) -> None:
    built()
    before = engines(here)
    machine.fails = error
    assert words in failed("build", "b.mmgen", "--target", "sm86")
    assert engines(here) == before


def test_a_damaged_build_is_replaced_with_a_warning_that_names_the_file(machine: Machine, here: Path) -> None:
    engine = Path(built()["folder"], "step.engine")
    good = engine.read_bytes()
    engine.write_bytes(good[:-1] + b"?")
    result = done("build", "b.mmgen")
    assert "Warning: " in result.stderr and "step.engine: sha256, got " in result.stderr
    assert engine.read_bytes() == good


INTERRUPTED = """
import sys, time
sys.path[:0] = sys.argv.pop(1).split(":")
from test_cli_build import Machine, builder, targets
machine = Machine()
targets.parse = machine.parse
def compile(job, report, *, expected):
    open(job.engine, "wb").write(b"half an eng")
    print("compiling", flush=True)
    time.sleep(60)
builder.compile_apart = compile
from mmgen.runtime.cli.main import main
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_is_ended_leaves_nothing(here: Path, number: int, code: int) -> None:
    def at_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # programs started in the background ignore it

    path = f"{Path(__file__).parent}:{PYTHON_PATH}"
    command = [sys.executable, "-c", INTERRUPTED, path, "build", "b.mmgen", "--target", "sm86"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=at_a_terminal
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "compiling\n"
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == code
    assert "Traceback" not in said
    assert engines(here) == []


# Pruning


def test_prune_alone_removes_what_cannot_be_used_and_builds_nothing(machine: Machine, here: Path) -> None:
    kept = built()
    machine.host = replace(ORIN, version="10.1.0.27")
    old = Path(built()["folder"])
    machine.host = ORIN
    compiled = len(machine.compiled)
    result = done("build", "b.mmgen", "--prune")
    assert f"removed b.mmgen/engines/{old.name} (" in result.stdout
    assert "place.version: found '10.1.0.27', wanted '10.3.0.30'" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(" freed")
    assert not old.exists() and Path(kept["folder"]).is_dir()
    assert len(machine.compiled) == compiled
    assert done("build", "b.mmgen", "--prune").stdout == "nothing to remove\n"
    assert json.loads(done("build", "b.mmgen", "--prune", "--json").stdout) == {"bundle": "b.mmgen", "removed": []}


def test_prune_with_a_target_also_builds(machine: Machine, here: Path) -> None:
    machine.rtx = "1.1.0.0"
    old = built("--target", "sm86")
    machine.rtx = "1.7.1.116"
    record = built("--target", "sm89", "--prune")
    assert [item["path"] for item in record["removed"]] == [old["folder"]]
    assert record["removed"][0]["bytes"] > 0 and record["reused"] is False
    assert engines(here) == [Path(record["folder"]).name]


def test_prune_keeps_engines_that_this_machine_cannot_judge(machine: Machine, here: Path) -> None:
    built()
    built("--target", "sm86")
    machine.host = machine.rtx = None
    assert done("build", "b.mmgen", "--prune").stdout == "nothing to remove\n"


def test_a_bad_target_prunes_nothing(machine: Machine, here: Path) -> None:
    os.truncate(Path(built()["folder"], "step.engine"), 1)
    before = engines(here)
    failed("build", "b.mmgen", "--prune", "--target", "mars")
    assert engines(here) == before


# Inspecting


def test_inspect_shows_every_build_and_its_state(machine: Machine, here: Path) -> None:
    whole = Path(built("--target", "sm86")["folder"])
    cut = Path(built("--target", "sm89")["folder"])
    os.truncate(cut / "step.engine", 7)
    mangled = Path(built()["folder"])
    (mangled / "build.json").write_text("{")
    lines = {line.split()[0]: line for line in done("inspect", "b.mmgen").stdout.splitlines() if line}
    assert "TensorRT for RTX 1.7.1.116, sm86 " in lines[whole.name]
    assert "75.0%" in lines[whole.name] and lines[whole.name].endswith("whole")
    assert "step.engine: bytes, got 7, wanted" in lines[cut.name]
    assert "build.json is not JSON" in lines[mangled.name]

    record = json.loads(done("inspect", "b.mmgen", "--json").stdout)["engines"]
    found = {Path(item["folder"]).name: item for item in record}
    assert found[whole.name]["problem"] is None
    assert found[whole.name]["build"] == json.loads((whole / "build.json").read_text())
    assert "got 7" in found[cut.name]["problem"] and found[mangled.name]["build"] is None


def test_inspect_says_that_engines_were_made_from_other_graphs(machine: Machine, here: Path) -> None:
    built("--target", "sm86")
    graph = here / "graphs/encode.onnx"
    graph.write_bytes(graph.read_bytes() + b"\n")
    edit(here, lambda record: record["graphs"]["encode"].update(sha256=sha256(graph)))
    assert "made from other graphs: graphs.encode: found '" in done("inspect", "b.mmgen").stdout


# The real compiler


@pytest.mark.slow
def test_engines_for_desktop_gpus_are_built_with_no_gpu(here: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    record = built("--target", "sm86", "--target", "sm89")
    step = record["build"]["engines"]["step"]
    assert step["report"]["half_layers"] > step["report"]["float_layers"] > 0
    weights = step["report"]["half_weight_bytes"], step["report"]["float_weight_bytes"]
    assert weights[0] / sum(weights) == pytest.approx(read_bundle(here).precision.half_share["step"].weight_bytes, 0.05)
    assert Path(record["folder"], step["file"]).stat().st_size == step["bytes"] > weights[0]
    assert built("--target", "sm89", "--target", "sm86")["reused"], "in any order"
