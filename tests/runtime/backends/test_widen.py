"""Half-precision graphs as ONNX Runtime plays them on a processor: float32 inside, half where it shows."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerances import LIMITS

from mmgen.runtime.backends.ort.cpu import open_backend
from mmgen.runtime.backends.ort.onnx_file import read_model
from mmgen.runtime.backends.ort.widen import widen
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Bundle
from mmgen.runtime.verify import relative_rms

HALF, FLOAT, INT64 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT64
WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float16)


def graph(folder: Path, *, functions: bool = False, nested: bool = False) -> Path:
    """Half values of every origin: a weight beside the file, an input, a constant, a cast; an output that is read too.

    y = softmax(x W + 1.5 + n), z = y y.
    """
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.float16(1.5))),
        helper.make_node("Cast", ["n"], ["added"], to=HALF),
        helper.make_node("Add", ["product", "c"], ["sum"]),
        helper.make_node("Add", ["sum", "added"], ["scores"], name="last sum", doc_string="kept"),
        helper.make_node("Softmax", ["scores"], ["y"], axis=-1),
        helper.make_node("Mul", ["y", "y"], ["z"]),
    ]
    if nested:
        inside = helper.make_graph([], "inside", [], [helper.make_tensor_value_info("y", HALF, [2, 4])])
        nodes.append(helper.make_node("If", ["b"], ["w"], then_branch=inside, else_branch=inside))
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", HALF, ["R", 4]), helper.make_tensor_value_info("n", INT64, [])],
            [helper.make_tensor_value_info(name, HALF, ["R", 4]) for name in ("y", "z")],
            [numpy_helper.from_array(WEIGHT, "weight")],
            value_info=[helper.make_tensor_value_info("sum", HALF, ["R", 4])],
        ),
        functions=[helper.make_function("f", "F", [], [], [], [helper.make_opsetid("", 20)])] if functions else [],
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(model, folder / "g.onnx", save_as_external_data=True, location="g.onnx.data", size_threshold=0)
    return folder / "g.onnx"


def float16_inside(model: onnx.ModelProto) -> set[str]:
    """What nodes make that is half."""
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
    made = {name for node in inferred.node for name in node.output}
    return {v.name for v in inferred.value_info if v.name in made and v.type.tensor_type.elem_type == HALF}


def widened(path: Path) -> onnx.ModelProto:
    model = read_model(path.read_bytes())
    assert widen(model.graph)
    return onnx.load_from_string(model.SerializeToString())


def test_inside_there_is_float32_and_outside_what_there_was(tmp_path: Path) -> None:
    path = graph(tmp_path)
    before, after = onnx.load(path, load_external_data=False), widened(path)
    assert float16_inside(before) >= {"sum", "scores", "added", "c"}
    assert float16_inside(after) == {"c"}, "a constant, which is cast like a weight"
    for names in ("input", "output", "initializer"):
        assert list(getattr(after.graph, names)) == list(getattr(before.graph, names))


def test_nothing_else_is_lost(tmp_path: Path) -> None:
    path = graph(tmp_path)
    before, after = onnx.load(path, load_external_data=False), widened(path)
    onnx.save(after, tmp_path / "widened.onnx")
    onnx.checker.check_model(tmp_path / "widened.onnx", full_check=True)
    kept = [(n.op_type, n.name, n.doc_string) for n in after.graph.node if n.op_type != "Cast"]
    assert kept == [(n.op_type, n.name, n.doc_string) for n in before.graph.node if n.op_type != "Cast"]
    assert after.opset_import == before.opset_import and after.ir_version == before.ir_version


def test_it_computes_the_same_without_rounding(tmp_path: Path) -> None:
    path, rng = graph(tmp_path), np.random.default_rng(1)
    content = widened(path).SerializeToString()
    session = open_backend("ort-cpu", threads=1).session(path, onnxruntime.SessionOptions(), content)
    x = rng.standard_normal((3, 4)).astype(np.float16)
    y, z = session.run(None, {"x": x, "n": np.array(2)})
    scores = x.astype(np.float64) @ WEIGHT.astype(np.float64) + 3.5
    want = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    assert y.dtype == z.dtype == np.float16
    assert relative_rms(y, want) < LIMITS["widened, rounded once"]
    assert relative_rms(z, want**2) < LIMITS["widened, rounded once"]


@pytest.mark.parametrize("inside", ["functions", "nested"])
def test_graphs_within_graphs_are_left_alone(inside: str, tmp_path: Path) -> None:
    assert read_model(graph(tmp_path, **{inside: True}).read_bytes()) is None


def test_a_float32_graph_is_left_alone_and_so_is_another_file(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", FLOAT, [1])
    y = helper.make_tensor_value_info("y", FLOAT, [1])
    plain = helper.make_model(helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y]))
    assert not widen(read_model(plain.SerializeToString()).graph)
    assert read_model(b"no ONNX file") is None


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return read_bundle(bundle_folder)


@pytest.mark.parametrize("role", ["condition", "timestep", "step", "decode"])
def test_graphs_of_a_bundle_have_no_half_inside(bundle: Bundle, role: str) -> None:
    path = bundle.path(bundle.graphs[role].file)
    assert float16_inside(onnx.load(path, load_external_data=False))
    assert not float16_inside(widened(path))


def test_what_onnx_runtime_makes_of_it_has_softmax_whole(bundle: Bundle, tmp_path: Path) -> None:
    path = bundle.path(bundle.graphs["step"].file)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    open_backend("ort-cpu", threads=1).load(bundle, "step", options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph.node]
    asked = [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]
    assert kinds.count("Softmax") == asked.count("Softmax") > 0
    assert kinds.count("Cast") < 20 < len(kinds)
