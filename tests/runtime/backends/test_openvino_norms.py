"""Group norms rewritten for OpenVINO are the same group norms."""

import importlib.util
from typing import Any

import numpy as np
import pytest
from tolerances import LIMITS

from mmgen.runtime.backends.openvino.backend import find_core, find_openvino
from mmgen.runtime.backends.openvino.norms import channels_last
from mmgen.runtime.verify import relative_rms

if not importlib.util.find_spec("openvino"):
    pytest.skip("OpenVINO is not installed", allow_module_level=True)
EPSILON = 1e-3
GROUPS = (0, 4, -1)  # each a row of a sample


def exported(
    shape: list[int],
    kind: type = np.float32,
    scale: float = 1.0,
    eager: bool = False,
    rows: tuple[int, ...] = GROUPS,
    axis: int = 2,
) -> Any:
    """A norm of four groups as it comes from ONNX; with ``eager`` its rows are read by others too."""
    opset = (openvino := find_openvino()).opset13
    x = opset.parameter(shape, kind)
    normed = opset.mvn(opset.reshape(x, np.array(rows), True), np.array([axis]), True, EPSILON, "inside_sqrt")
    scaled = opset.multiply(normed, np.full((1, 1, 1), scale, kind))
    out = opset.reshape(opset.add(scaled, np.zeros((1, 1, 1), kind)), opset.shape_of(x), False)
    return openvino.Model([out, normed] if eager else [out], [x])


def play(model: Any, x: np.ndarray) -> np.ndarray:
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    made: np.ndarray = find_core().compile_model(model, "CPU", options)(x)[0]
    return made


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_numbers_are_the_same(batch: int, kind: type) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 12, 5, 7)) + 10 * rng.standard_normal((1, 12, 1, 1))  # channels far from each other
    x = x.astype(kind)
    groups = x.astype(np.float64).reshape(batch, 4, -1)
    want = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + EPSILON)
    model = exported([-1, 12, 5, 7], kind)
    assert channels_last(find_openvino(), model) == 1
    assert "MVN" not in [node.get_type_name() for node in model.get_ops()]
    limit = LIMITS["group norm, channels last, half" if kind is np.float16 else "group norm, channels last"]
    assert relative_rms(play(model, x), want.reshape(x.shape)) < limit


@pytest.mark.parametrize(
    "other",
    [
        {"shape": [-1, 12, 35]},
        {"shape": [-1, 12, 5, 7], "scale": 2.0},
        {"shape": [-1, 12, 5, 7], "eager": True},
        {"shape": [-1, 12, 5, 7], "axis": 1},
        {"shape": [-1, 12, 5, 7], "rows": (-1, 4, 35)},
        {"shape": [-1, 12, 5, 7], "rows": (0, 5, 84)},
    ],
    ids=["no picture", "scaled rows", "rows read by others", "across rows", "rows are channels", "parts of channels"],
)
def test_other_norms_stay(other: dict[str, Any]) -> None:
    model = exported(**other)
    assert channels_last(find_openvino(), model) == 0
