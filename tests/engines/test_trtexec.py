"""``mmgen inspect --trtexec``: a command for each graph, with the shapes that the builder asks TensorRT for."""

import json
import shlex
from pathlib import Path

import api
import pytest
from commands import done, mmgen
from manifests import edit
from play import Machine, copied
from standin_network import unpack

from mmgen.runtime.builds.profiles import dynamic_shapes
from mmgen.runtime.cli.trtexec import commands
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Axis, TensorSpec

Profiles = list[dict[str, list[list[int]]]]  # of each, by input, the least, the usual and the largest shape


def as_trtexec_reads(arguments: list[str]) -> Profiles:
    """The profiles of a command, as trtexec's documentation has it: shapes belong to the --profile before them."""
    found: Profiles = []
    numbered = any(argument.startswith("--profile=") for argument in arguments)
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option == "--profile":
            assert int(value) == len(found)
            found.append({})
        elif option in ("--minShapes", "--optShapes", "--maxShapes"):
            if not found:
                assert not numbered
                found.append({})
            for pair in value.split(","):
                name, _, shape = pair.rpartition(":")
                found[-1].setdefault(name, []).append([int(n) for n in shape.split("x")])
    return found


@pytest.mark.parametrize("release", api.TENSORRT)
def test_shapes_are_those_that_the_builder_asks_for(
    bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    copy = copied(bundle_folder, tmp_path / "b.mmgen")
    folder, build = Machine(release, monkeypatch).build(copy)
    told = commands(read_bundle(copy))
    assert set(told) == set(build.engines)
    for role, engine in build.engines.items():
        assert as_trtexec_reads(told[role]) == unpack((folder / engine.file).read_bytes())[0]["profiles"], role


def test_a_line_for_each_graph_can_be_pasted(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle_copy.rename("it's a bundle.mmgen")
    record = json.loads(done("inspect", "it's a bundle.mmgen", "--trtexec", "--json").stdout)["trtexec"]
    lines = done("inspect", "it's a bundle.mmgen", "--trtexec").stdout.splitlines()
    assert [shlex.split(line) for line in lines] == list(record.values())
    assert set(record) == {"condition", "timestep", "step", "decode", "encode"}
    for role, (program, onnx, *rest) in record.items():
        assert program == "trtexec" and Path(onnx.removeprefix("--onnx=")).is_file()
        assert {"--stronglyTyped", "--noTF32", f"--saveEngine={role}.engine"} <= set(rest)
    assert "--minShapes=latents:1x4x8x8" in record["decode"] and "--maxShapes=latents:8x4x8x8" in record["decode"]


def test_one_profile_has_no_number_and_fixed_shapes_have_none(bundle_copy: Path) -> None:
    """Ranges of one number each: TensorRT's usual shapes are all that there are."""

    def narrow(record: dict[str, dict[str, dict[str, int]]]) -> None:
        record["axes"]["B"] = {"min": 1, "opt": 1, "max": 1}

    edit(bundle_copy, narrow)
    decode = commands(read_bundle(bundle_copy))["decode"]
    assert as_trtexec_reads(decode) == [{"latents": [[1, 4, 8, 8]] * 3}]
    assert not [argument for argument in decode if argument.startswith("--profile")]


def test_inputs_without_named_axes_are_left_out() -> None:
    inputs = (TensorSpec("a", "float32", ("B", 3)), TensorSpec("b", "float32", (1,)))
    wide, usual = {"B": Axis(1, 2, 4)}, {"B": Axis(2, 2, 2)}
    assert dynamic_shapes(inputs, (usual, wide)) == [
        {"a": ((2, 3), (2, 3), (2, 3))},
        {"a": ((1, 3), (2, 3), (4, 3))},
    ]
    assert dynamic_shapes(inputs[1:], (usual, wide)) == [{}], "one profile, of nothing"


def test_a_bundle_for_cpus_alone_is_refused(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda record: record.update(cpu_only={"step": ["a sum of what is scattered"]}))
    result = mmgen("inspect", "b.mmgen", "--trtexec")
    assert result.exit_code == 1 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and "for CPUs alone" in line and "a sum of what is scattered" in line
