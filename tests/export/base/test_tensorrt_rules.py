"""What the lint says that TensorRT doesn't take, and what TensorRT for RTX says of the same graphs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import pytest
from onnx import numpy_helper

from mmgen.engines.activations import elu_to_selu
from mmgen.engines.network import parse
from mmgen.export.base.lint import lint
from mmgen.runtime.backends.tensorrt.library import find_library, make_logger
from mmgen.runtime.base.errors import MmgenError

THEN = "t () => (float[N,4] a) { a = Tanh(x) }"
RTX, OLDER = True, False  # whether TensorRT for RTX 1.7 refuses it too, or TensorRT 10.3 alone, by its parser's source

# name: (graph, what the lint says, who refuses it); letters in <> are weights of that shape, where the text has none
REFUSED: dict[str, tuple[str, str, bool]] = {
    "compress": ("(float[N,4] x, bool[4] c) => (float[N,M] y) { y = Compress <axis = 1> (x, c) }", "no such", RTX),
    "det": ("(float[N,4,4] x) => (float[N] y) { y = Det(x) }", "no such operator", RTX),
    "shift": ("(uint32[N] x, uint32[1] s) => (uint32[N] y) { y = BitShift <direction = 'LEFT'> (x, s) }", "no", RTX),
    "crop": ("(float[N,4] x) => (float[2,6] y) <int64[2] s = {2, 6}> { y = CenterCropPad(x, s) }", "no such", RTX),
    "unpool": (
        "(float[N,1,2,2] x, int64[N,1,2,2] i) => (float[N,1,4,4] y) "
        "{ y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, i) }",
        "no such operator",
        RTX,
    ),
    "regions": (
        "(float[N,3,8,8] x, float[2,4] r, int64[2] i) => (float[2,3,2,2] y) "
        "{ y = RoiAlign <output_height = 2, output_width = 2> (x, r, i) }",
        "no such operator",
        RTX,
    ),
    "boxes": (
        "(float[1,6,4] b, float[1,2,6] s) => (int64[M,3] y) <int64[1] m = {3}> { y = NonMaxSuppression(b, s, m) }",
        "no such operator",
        RTX,
    ),
    "loss": ("(float[N,5] x, int64[N] t) => (float y) { y = SoftmaxCrossEntropyLoss(x, t) }", "no such", RTX),
    "optional": (
        "(float[N,2] x) => (float[N,2] y) { o = Optional(x) y = OptionalGetElement(o) }", "no optional values", RTX
    ),
    "quantised product": (
        "(uint8[N,4] x, uint8[4,5] w) => (int32[N,5] y) { y = MatMulInteger(x, w) }", "no such operator", RTX
    ),
    "short-time transform": (
        "(float[N,64] x) => (float[N,7,9,2] y) <int64 s = {8}, int64 l = {16}> { y = STFT(x, s, , l) }",
        "needs TensorRT 10.5",
        OLDER,
    ),
    "window": (
        "(float[16] x) => (float[16] y) <int64 s = {16}> { w = HannWindow(s) y = Mul(x, w) }",
        "needs TensorRT 10.4; make it a buffer",
        OLDER,
    ),
    "resize by another rule": (
        "(float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] s = {1, 1, 2, 2}> "
        "{ y = Resize <coordinate_transformation_mode = 'half_pixel_symmetric'> (x, , s) }",
        "can't resize by half_pixel_symmetric",
        RTX,
    ),
    "resize in proportion": (
        "(float[1,1,4,4] x) => (float[1,1,8,8] y) <int64[2] s = {8, 8}> "
        "{ y = Resize <axes = [2, 3], keep_aspect_ratio_policy = 'not_larger'> (x, , , s) }",
        "doesn't keep the aspect ratio",
        RTX,
    ),
    "resize of whole numbers": (
        "(int32[1,1,4,4] x) => (int32[1,1,8,8] y) <float[4] s = {1, 1, 2, 2}> { y = Resize(x, , s) }",
        "doesn't take int32; make it a float",
        RTX,
    ),
    "dilated pooling": (
        "(float[N,3,8,8] x) => (float[N,3,6,6] y) { y = MaxPool <kernel_shape = [2, 2], dilations = [2, 2]> (x) }",
        "pools without dilation only",
        RTX,
    ),
    "places of maxima": (
        "(float[N,3,8,8] x) => (float[N,3,7,7] y, int64[N,3,7,7] i) { y, i = MaxPool <kernel_shape = [2, 2]> (x) }",
        "doesn't say where the largest was",
        RTX,
    ),
    "mean of a norm": (
        "(float[N,4] x) => (float[N,4] y, float[N,1] m) <float[4] s = {1, 1, 1, 1}> "
        "{ y, m = LayerNormalization(x, s) }",
        "doesn't give its mean",
        RTX,
    ),
    "norm in training": (
        "(float[N,2,4] x) => (float[N,2,4] y, float[2] m, float[2] v) <float[2] s = {1, 1}> "
        "{ y, m, v = BatchNormalization <training_mode = 1> (x, s, s, s, s) }",
        "has no training; call eval()",
        RTX,
    ),
    "dropout in training": (
        "(float[N,4] x) => (float[N,4] y) <float r = {0.5}, bool t = {1}> { y = Dropout(x, r, t) }",
        "has no training; call eval()",
        RTX,
    ),
    "coupled gates": (
        "(float[5,2,4] x) => (float[5,1,2,3] y) "
        "{ y = LSTM <hidden_size = 3, input_forget = 1> (x, <1x12x4>, <1x12x3>) }",
        "input and forget gates are one",
        RTX,
    ),
    "batch first": (
        "(float[2,5,4] x) => (float[2,5,1,3] y) { y = GRU <hidden_size = 3, layout = 1> (x, <1x9x4>, <1x9x3>) }",
        "want time first",
        OLDER,
    ),
    "halves of sequences": (
        "(float16[5,2,4] x, int32[2] n) => (float16[5,1,2,3] y) "
        "{ y = RNN <hidden_size = 3> (x, <1x3x4h>, <1x3x3h>, <1x6h>, n) }",
        "takes it in float32 only",
        RTX,
    ),
    "two ways": (
        "(float[5,2,4] x) => (float[5,2,2,3] y) { y = RNN <hidden_size = 3, direction = 'bidirectional', "
        "activations = ['Tanh', 'Relu']> (x, <2x3x4>, <2x3x3>) }",
        "the same activations in both directions",
        RTX,
    ),
    "capitals": (
        "(float[N,4] x) => (float[N,5] y) { y = Einsum <equation = 'aB,Bc->ac'> (x, <4x5>) }", "small letters", RTX
    ),
    "axes that vary": (
        "(float[N,3,4] x, int64[1] a) => (float[A,B,C] y) { y = ReduceSum(x, a) }", "wants constant axes", RTX
    ),
    "axes made of constants": (
        "(float[N,3,4] x) => (float[A,B,C] y) <int64[1] a = {0}, int64[1] b = {1}> "
        "{ c = Sub(a, b) y = ReduceMax(x, c) }",
        "wants constant axes",
        RTX,
    ),
    "an axis that varies": ("(float[N,3] x, int64 a) => (float[N,3] y) { y = CumSum(x, a) }", "constant axes", RTX),
    "squeezed in general": ("(float[N,1,2] x) => (float[A,B] y) { y = Squeeze(x) }", "name them", OLDER),
    "classes that vary": (
        "(int64[N] i, int64 d) => (float[N,M] y) <float[2] v = {0, 1}> { y = OneHot(i, d, v) }", "of classes", RTX
    ),
    "scales that vary": ("(float[1,1,4,4] x, float[4] s) => (float[A,B,C,D] y) { y = Resize(x, , s) }", "scales", RTX),
    "unit matrix": ("(float[N,4] x) => (float[N,4] y) { y = EyeLike(x) }", "wants fixed sizes", RTX),
    "bounds that vary": (
        "(float d) => (float[M] y) <float z = {0}, float o = {1}> { y = Range(z, d, o) }", "count with whole", RTX
    ),
    "product of whole numbers": (
        "(int64[N,4] x, int64[4,5] w) => (int64[N,5] y) { y = MatMul(x, w) }", "doesn't take int64", RTX
    ),
    "root of whole numbers": (
        "(int32[N,4] x) => (int32[N,1] y) <int64[1] a = {1}> { y = ReduceL2(x, a) }", "doesn't take int32", RTX
    ),
    "any of booleans": (
        "(bool[N,4] x) => (bool[N,1] y) <int64[1] a = {1}> { y = ReduceMax(x, a) }", "doesn't take bool", RTX
    ),
    "nine axes": (
        "(float[N,8] x) => (float[N,8] y) <int64[9] s = {-1,2,1,2,1,2,1,1,1}, int64[2] t = {-1,8}> "
        "{ a = Reshape(x, s) b = Tanh(a) y = Reshape(b, t) }",
        "at most 8 axes, got 9",
        RTX,
    ),
    "one axis": ("(float[9] x) => (int64[1] y) { y = ArgMax(x) }", "at least two axes", RTX),
    "norm of two axes": (
        "(float[N,4] x) => (float[N,4] y) { y = InstanceNormalization(x, <4>, <4>) }", "at least three axes", RTX
    ),
    "four axes": (
        "(float[N,2,3,3,3,3] x) => (float[N,4,2,2,2,2] y) { y = Conv(x, <4x2x2x2x2x2>) }", "up to 3 axes, got 4", RTX
    ),
    "bytes": ("(uint8[N,4] x) => (uint8[4,N] y) { y = Transpose(x) }", "uint8 as input and output only", RTX),
    "bytes inside": (
        "(float[N,4] x) => (float[N,4] y) { a = Cast <to = 2> (x) y = Cast <to = 1> (a) }", "cast to int32", RTX
    ),
    "small constants": (
        "(float[N,2] x) => (float[N,2] y) <int8[2] c = {1, 2}> { a = Cast <to = 1> (c) y = Mul(x, a) }",
        "tensor c is int8; TensorRT takes such constants for quantised weights only",
        RTX,
    ),
}  # fmt: skip

# What passes, since it compiles
TAKEN: dict[str, str] = {
    "LSTM": "(F[5,N,4] x) => (F[5,1,N,3] y) { y = LSTM <hidden_size = 3> (x, <1x12x4>, <1x12x3>, <1x24>) }",
    "LSTM, from a state": (
        "(F[5,N,4] x, F[1,N,3] h, F[1,N,3] c) => (F[5,1,N,3] y, F[1,N,3] g, F[1,N,3] d) "
        "{ y, g, d = LSTM <hidden_size = 3> (x, <1x12x4>, <1x12x3>, <1x24>, , h, c) }"
    ),
    "LSTM, both ways": (
        "(F[5,N,4] x) => (F[5,2,N,3] y) "
        "{ y = LSTM <hidden_size = 3, direction = 'bidirectional'> (x, <2x12x4>, <2x12x3>) }"
    ),
    "GRU": (
        "(F[5,N,4] x) => (F[5,1,N,3] y) "
        "{ y = GRU <hidden_size = 3, linear_before_reset = 1> (x, <1x9x4>, <1x9x3>, <1x18>) }"
    ),
    "RNN": "(F[5,N,4] x) => (F[5,1,N,3] y) { y = RNN <hidden_size = 3, direction = 'reverse'> (x, <1x3x4>, <1x3x3>) }",
    "ELUs behind a loop": (
        "(F[5,N,4] x) => (F[5,1,N,4] y) { a = LSTM <hidden_size = 4> (x, <1x16x4>, <1x16x4>) "
        "b = Elu <alpha = 0.5> (a) c = Tanh(b) y = Elu(c) }"
    ),
    "ELUs behind a branch": (
        f"(F[N,4] x, bool q) => (F[N,4] y) {{ b = If <then_branch = {THEN}, else_branch = {THEN}> (q) "
        "c = Elu(b) d = Softmax(c) y = Elu(d) }"
    ),
    "bytes at the ends": (
        "(uint8[N,4] x, F[N,4] z) => (uint8[N,4] y) { a = CastLike(x, z) b = Mul(a, z) y = Cast <to = 2> (b) }"
    ),
    "table of bytes": "(int64[N] i) => (F[N] y) <uint8[3] t = {1, 2, 3}> { a = Gather(t, i) y = Cast <to = T> (a) }",
    "as long as another": (
        "(F[N,4] x) => (float[M] y) <float z = {0}, float o = {1}> "
        "{ s = Shape <start = 0, end = 1> (x) q = Squeeze(s) f = Cast <to = 1> (q) y = Range(z, f, o) }"
    ),
}  # fmt: skip


def save(folder: Path, text: str, precision: str = "float") -> Path:
    """Write a graph, with random weights where the text has only their shapes: <2x3>, <2x3h> in half precision."""
    half = precision == "float16"
    text = text.replace("'", '"').replace("F[", f"{precision}[").replace("T>", "10>" if half else "1>")
    if half:
        text = text.replace("(float[N,4] a)", "(float16[N,4] a)")  # of a branch
    weights = []
    while "<" in text and (start := _shape_at(text)) is not None:
        end = text.index(">", start)
        shape = text[start + 1 : end]
        dtype = np.float16 if half or shape.endswith("h") else np.float32
        numbers = np.random.default_rng(0).normal(size=[int(n) for n in shape.removesuffix("h").split("x")])
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(numbers.astype(dtype), name))
        text = f"{text[:start]}{name}{text[end + 1 :]}"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> g {text}')
    model.graph.initializer.extend(weights)
    onnx.save(model, path := folder / "step.onnx")
    return path


def _shape_at(text: str) -> int | None:
    return next((i for i, c in enumerate(text[:-1]) if c == "<" and text[i + 1].isdigit()), None)


@pytest.fixture(scope="module")
def compiles() -> Callable[[Path], bool]:
    """Whether TensorRT for RTX makes an engine of a file, for one to four of N."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    library: Any = find_library("tensorrt-rtx")
    logger = make_logger(library)

    def answer(path: Path) -> bool:
        try:
            parsed = parse(library, logger, "tensorrt-rtx", "step", path)
        except MmgenError:
            return False
        elu_to_selu(library, parsed.network)
        config = parsed.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.ComputeCapability.SM86, 0)
        profile = parsed.builder.create_optimization_profile()
        for tensor in map(parsed.network.get_input, range(parsed.network.num_inputs)):
            if -1 in tensor.shape:
                profile.set_shape(tensor.name, *([n if d == -1 else d for d in tensor.shape] for n in (1, 2, 4)))
        config.add_optimization_profile(profile)
        return parsed.builder.build_serialized_network(parsed.network, config) is not None

    return answer


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_take_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    text, reason, _ = REFUSED[name]
    with pytest.raises(MmgenError) as error:
        lint(save(tmp_path, text))
    assert reason in str(error.value)
    assert "not valid ONNX" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, (_, _, rtx) in REFUSED.items() if rtx])
def test_the_compiler_refuses_it_too(name: str, compiles: Callable[[Path], bool], tmp_path: Path) -> None:
    assert not compiles(save(tmp_path, REFUSED[name][0]))


@pytest.mark.parametrize("precision", ["float", "float16"])
@pytest.mark.parametrize("name", TAKEN)
def test_what_passes_compiles(
    name: str, precision: str, compiles: Callable[[Path], bool], tmp_path: Path
) -> None:
    path = save(tmp_path, TAKEN[name], precision)
    lint(path)
    assert compiles(path)


def test_elu_keeps_its_slope(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    text = "(float[N,4] x) => (float[N,4] y) { a = Elu <alpha = 0.5> (x) b = Relu(a) y = Elu(b) }"
    parsed = parse(library, make_logger(library), "tensorrt-rtx", "step", save(tmp_path, text))
    elu_to_selu(library, parsed.network)
    layers = [parsed.network.get_layer(i) for i in range(parsed.network.num_layers)]
    activations = [layer for layer in layers if layer.type == library.LayerType.ACTIVATION]
    for layer in activations:
        layer.__class__ = library.IActivationLayer
    assert [(layer.type.name, layer.alpha, layer.beta) for layer in activations if layer.type.name != "RELU"] == [
        ("SELU", 0.5, 1.0),
        ("SELU", 1.0, 1.0),
    ]
