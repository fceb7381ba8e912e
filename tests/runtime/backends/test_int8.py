"""The step's large matrices in eight bits: what stays, what it costs, and that nothing else changes."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tolerances import LIMITS

from mmgen.runtime import load
from mmgen.runtime.backends.ort import int8
from mmgen.runtime.backends.ort.int8 import largest_weight, quantise
from mmgen.runtime.backends.ort.onnx_file import read_model
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.verify import psnr, relative_rms

RNG = np.random.default_rng(0)
ASKED = {"prompt": "red apple", "label": 1, "steps": 4, "seed": 5}


def matrix(rows: int, columns: int) -> np.ndarray:
    return RNG.standard_normal((rows, columns)).astype(np.float32)


def saved(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], inline: bool = False) -> Path:
    """A graph from x (R, K) to y; weights lie beside it, or in it."""
    rows = next(iter(weights.values())).shape[0]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["R", rows])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(weight, name) for name, weight in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    beside = {"save_as_external_data": True, "location": "g.onnx.data", "size_threshold": 0}
    onnx.save(model, folder / "g.onnx", **({} if inline else beside))
    return folder / "g.onnx"


def quantised(path: Path, largest: int | None = None) -> onnx.ModelProto:
    model = read_model(path.read_bytes())
    weights = path.with_name("g.onnx.data")
    assert quantise(model.graph, weights if weights.exists() else None, largest or largest_weight())
    return onnx.load_from_string(model.SerializeToString())


def play(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    made: np.ndarray = session.run(None, {"x": x})[0]
    return made


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
@pytest.mark.parametrize("inline", [False, True], ids=["beside", "inside"])
def test_a_product_is_near_and_each_column_for_itself(half: bool, inline: bool, tmp_path: Path) -> None:
    weight = matrix(256, 192) * np.geomspace(1e-3, 10, 192).astype(np.float32)  # columns of very different sizes
    nodes = [helper.make_node("MatMul", ["x", "wide" if half else "w"], ["y"])]
    if half:
        weight = weight.astype(np.float16)
        nodes.insert(0, helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT))
    model = quantised(saved(tmp_path, nodes, {"w": weight}, inline))
    assert {w.data_type for w in model.graph.initializer} == {TensorProto.INT8, TensorProto.FLOAT}
    x = matrix(16, 256)
    got, want = play(model, x), x.astype(np.float64) @ weight.astype(np.float64)
    for column in range(0, 192, 16):
        assert relative_rms(got[:, column], want[:, column]) < LIMITS["int8, one product"]


def test_what_is_narrow_or_no_matrix_stays(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["a"]),
        helper.make_node("MatMul", ["a", "large"], ["b"]),
        helper.make_node("MatMul", ["b", "stack"], ["c"]),
        helper.make_node("MatMul", ["c", "last"], ["y"]),
    ]
    shapes = {"first": (16, 128), "large": (128, 128), "stack": (1, 128, 128), "last": (128, 127)}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = quantised(saved(tmp_path, nodes, weights))
    assert Counter(node.op_type for node in model.graph.node)["MatMulInteger"] == 1
    left = {weight.name for weight in model.graph.initializer}
    assert left == {"first", "large.int8", "large.scale", "stack", "last"}


def test_one_input_of_two_products_is_quantised_once_and_a_matrix_that_others_read_is_kept(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["x", "v"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["c"]),
        helper.make_node("Add", ["c", "w"], ["y"]),
    ]
    weights = {"w": matrix(128, 128), "v": matrix(128, 128)}
    model = quantised(saved(tmp_path, nodes, weights, inline=True))
    assert Counter(node.op_type for node in model.graph.node)["DynamicQuantizeLinear"] == 1
    assert "w" in weights_of(model) and "v" not in weights_of(model)
    x = matrix(128, 128)
    want = (x @ weights["w"]) * (x @ weights["v"]) + weights["w"]
    assert relative_rms(play(model, x), want) < 2 * LIMITS["int8, one product"]


def test_a_product_of_a_product(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["y"])]
    weights = {"w": matrix(128, 128), "v": matrix(128, 128)}
    model = quantised(saved(tmp_path, nodes, weights))
    assert Counter(node.op_type for node in model.graph.node)["MatMulInteger"] == 2
    x = matrix(8, 128)
    assert relative_rms(play(model, x), x @ weights["w"] @ weights["v"]) < 2 * LIMITS["int8, one product"]


def test_a_column_of_zeros_makes_zeros(tmp_path: Path) -> None:
    weight = matrix(128, 128)
    weight[:, 5] = 0
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    made = play(quantised(path), matrix(4, 128))
    assert np.isfinite(made).all() and not made[:, 5].any() and made[:, 4].all()


@pytest.mark.parametrize(
    ("machine", "flags", "largest"),
    [
        ("x86_64", "avx2", 63), ("x86_64", "avx2 avx_vnni", 127), ("AMD64", "avx512_vnni", 127),
        ("aarch64", "asimd asimddp", 127),
    ],
)  # fmt: skip
def test_weights_have_seven_bits_where_two_products_would_overflow(
    machine: str, flags: str, largest: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(int8, "processor", lambda: flags)
    assert largest_weight() == largest
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": matrix(128, 128)})
    found = weights_of(quantised(path, largest_weight()))["w.int8"]
    assert (np.abs(found).max(0) == largest).all()


def test_there_is_nothing_to_make_of_small_matrices(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": matrix(64, 64)})
    before = read_model(path.read_bytes())
    after = read_model(path.read_bytes())
    assert not quantise(after.graph, None, 127)
    assert after == before


def test_onnx_runtime_makes_one_operator_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": matrix(128, 128)})
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(quantised(path).SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert made == ["DynamicQuantizeMatMul"]


def test_a_bundle_is_played_near_to_float32(bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "NARROW", 16)  # its widest layer has 128 numbers
    with load(bundle_folder, "ort-cpu") as generator:
        want = generator.generate(**ASKED)
    with load(bundle_folder, "ort-cpu-int8") as generator:
        assert generator.backend == "ort-cpu-int8"
        got = generator.generate(**ASKED)
        media, codes = generator.decode(want.latents)
    error = relative_rms(got.latents, want.latents)
    assert 1e-4 < error < LIMITS["int8, latents"], "it is another arithmetic, and near"
    assert psnr(got.media, want.media) > LIMITS["int8, PSNR"]
    np.testing.assert_array_equal(media, want.media, "the decoder is the same")
    np.testing.assert_array_equal(codes, want.codes)


def test_a_bundle_with_nothing_to_gain_is_not_played_in_its_name(bundle_folder: Path) -> None:
    with pytest.raises(MmgenError, match="no products that int8 would make faster"):
        load(bundle_folder, "ort-cpu-int8")
