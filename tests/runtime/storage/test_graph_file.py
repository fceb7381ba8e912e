"""Graphs of a bundle that name files of their own, change while it is open, or aren't what the manifest says."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import mmgen
from manifests import edit

from mmgen.runtime import MmgenError, load
from mmgen.runtime.backends.ort.onnx_file import read_model
from mmgen.runtime.storage.graph_file import locations
from mmgen.runtime.storage.hashes import sha256

PICTURE = np.zeros((16, 16, 3), np.uint8)
STEP = "graphs/step.onnx"


@pytest.fixture
def copy(bundle_copy: Path) -> Path:
    for folder in ("engines", "optimised"):
        shutil.rmtree(bundle_copy / folder, ignore_errors=True)
    return bundle_copy


def change(bundle: Path, edit_model: Callable[[Any], object]) -> None:
    """Change the step graph, whose hash is then right."""
    model = read_model((bundle / STEP).read_bytes())
    edit_model(model)
    (bundle / STEP).write_bytes(model.SerializeToString())
    edit(bundle, lambda record: record["graphs"]["step"].update(sha256=sha256(bundle / STEP)))


def moved(location: str) -> Callable[[Any], None]:
    """Say that the weights are in another file."""

    def move(model: Any) -> None:
        for weight in model.graph.initializer:
            for entry in weight.external_data:
                if entry.key == "location":
                    entry.value = location

    return move


LOCATIONS = ["../../outside", "../golden.npz", "second.data", "link.data", "/dev/zero", "", "a/b"]


@pytest.mark.parametrize("location", LOCATIONS)
def test_weights_in_a_file_that_the_manifest_does_not_name(copy: Path, cpu: str, location: str) -> None:
    """Even where it has the right bytes."""
    weights = (copy / f"{STEP}.data").read_bytes()
    for path in (copy.parent / "outside", copy / "graphs/second.data"):
        path.write_bytes(weights)
    (copy / "graphs/link.data").symlink_to(copy.parent / "outside")
    change(copy, moved(location))
    with pytest.raises(MmgenError, match=r"weights in a file that the manifest doesn't name, got .*do not use this"):
        load(copy, cpu, threads=1)


@pytest.mark.parametrize("target", ["cpu", "sm86"])
def test_nothing_is_built_of_it_either(copy: Path, target: str) -> None:
    if target != "cpu":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    (copy.parent / "outside").write_bytes((copy / f"{STEP}.data").read_bytes())
    change(copy, moved("../../outside"))
    result = mmgen("build", "b.mmgen", "--target", target)
    assert result.exit_code == 1 and "weights in a file that the manifest doesn't name" in result.output
    assert not list(copy.glob("engines/[0-9a-f]*"))


def test_tensors_are_found_wherever_onnx_can_have_them() -> None:
    """Also where this package's own reader doesn't look: in attributes, graphs in nodes, functions and training."""
    onnx = pytest.importorskip("onnx", reason="the package onnx is not installed")

    def tensor(name: str) -> Any:
        made = onnx.TensorProto(name=name, data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=name)
        made.external_data.add(key="offset", value="4096")
        return made

    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"))
    attributes = [
        onnx.AttributeProto(name="t", t=tensor("t")),
        onnx.AttributeProto(name="ts", tensors=[tensor("ts0"), tensor("ts1")]),
        onnx.AttributeProto(name="g", g=onnx.GraphProto(initializer=[tensor("inner")])),
        onnx.AttributeProto(name="gs", graphs=[onnx.GraphProto(sparse_initializer=[sparse])]),
        onnx.AttributeProto(name="s", sparse_tensors=[onnx.SparseTensorProto(values=tensor("s"))]),
    ]
    node = onnx.NodeProto(op_type="If", attribute=attributes)
    constant = onnx.NodeProto(attribute=[onnx.AttributeProto(t=tensor("function"))])
    model = onnx.ModelProto(
        graph=onnx.GraphProto(node=[node], initializer=[tensor("weights")]),
        functions=[onnx.FunctionProto(name="f", node=[constant])],
        training_info=[onnx.TrainingInfoProto(algorithm=onnx.GraphProto(initializer=[tensor("training")]))],
    )
    wanted = b"weights t ts0 ts1 inner values indices s function training".split()
    assert sorted(locations(model.SerializeToString())) == sorted(wanted)


def test_names_that_are_no_text_are_one_error(copy: Path, cpu: str) -> None:
    content = (copy / STEP).read_bytes()
    assert content.count(b"MatMul") > 3
    (copy / STEP).write_bytes(content.replace(b"MatMul", b"Mat\xfful"))
    edit(copy, lambda record: record["graphs"]["step"].update(sha256=sha256(copy / STEP)))
    with pytest.raises(MmgenError, match=r"step\.onnx") as caught:
        load(copy, cpu, threads=1)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x7f", b"\x0f", b"\x3a\x02\x2a", b"\xff" * 20], ids=repr)
def test_what_is_no_message_is_one_error(copy: Path, cpu: str, content: bytes) -> None:
    (copy / STEP).write_bytes(content)
    edit(copy, lambda record: record["graphs"]["step"].update(sha256=sha256(copy / STEP)))
    with pytest.raises(MmgenError, match=r"step\.onnx is not ONNX") as caught:
        load(copy, cpu, threads=1)
    assert len(str(caught.value)) < 400


def test_inputs_and_outputs_are_the_manifests(copy: Path, cpu: str) -> None:
    change(copy, lambda model: model.graph.input.pop())
    with pytest.raises(MmgenError, match=r"graph step: inputs and outputs, got|ONNX Runtime can't load|can't load"):
        load(copy, cpu, threads=1)


def test_a_graph_that_fails_when_it_runs_is_one_error(copy: Path) -> None:
    """It says that the codes are more than the table has."""

    def out_of_range(model: Any) -> None:
        for weight in model.graph.initializer:
            if weight.data_type == 7 and weight.raw_data:
                weight.raw_data = np.full(len(weight.raw_data) // 8, 1 << 40, np.int64).tobytes()

    change(copy, out_of_range)
    with pytest.raises(MmgenError) as caught:
        load(copy, "ort-cpu", threads=1).generate(prompt="red", steps=1)
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


def test_what_is_opened_late_is_what_was_hashed(copy: Path, cpu: str) -> None:
    """The encoder is opened by the first request that needs it."""
    with load(copy, cpu, threads=1) as generator:
        graph = copy / "graphs/encode.onnx"
        content = graph.read_bytes()
        graph.write_bytes(content + b"\n")
        with pytest.raises(MmgenError, match=r"encode\.onnx: sha256, got .*the file changed"):
            generator.generate(prompt="red", image=PICTURE, steps=4)
        graph.write_bytes(content)
        assert generator.generate(prompt="red", image=PICTURE, steps=4).media.any()
    with load(copy, cpu, threads=1) as generator:
        shutil.rmtree(copy)
        with pytest.raises(MmgenError, match=r"encode\.onnx can't be read any more .*leave a bundle where it is"):
            generator.generate(prompt="red", image=PICTURE, steps=4)
        assert generator.generate(prompt="red", steps=1).media.any(), "what is open is open"
