"""What the lint refuses, one minimal graph for each reason, and that it lets through what mmgen writes."""

from pathlib import Path

import onnx
import onnx.parser
import pytest
import torch
from onnx import TensorProto, helper
from tiny import tiny_model

from mmgen.export.base.lint import lint
from mmgen.export.graphs.latent import decode_source, step_source
from mmgen.export.half.precision import to_half
from mmgen.export.half.ranges import measure_ranges
from mmgen.export.tracing.trace import trace
from mmgen.runtime.base.errors import MmgenError

BODY = "b (int64 i, bool c, float[2] v) => (bool c2, float[2] w) { c2 = Identity(c) w = Add(v, v) }"
THEN = "t () => (float[2] a) { a = Identity(x) }"

# name: (operator set, graph, what the error must say)
REFUSED = {
    "scatter-add": (
        18,
        "(float[4] x, int64[2] i, float[2] u) => (float[4] y) "
        "{ [n] y = ScatterElements <reduction = 'add'> (x, i, u) }",
        "ScatterElements n: TensorRT scatters without a reduction only",
    ),
    "scatter-nd-max": (
        18,
        "(float[4] x, int64[2,1] i, float[2] u) => (float[4] y) { [n] y = ScatterND <reduction = 'max'> (x, i, u) }",
        "ScatterND n: TensorRT scatters without a reduction only",
    ),
    "nonzero": (18, "(float[4] x) => (int64[1,N] y) { [n] y = NonZero(x) }", "NonZero n: TensorRT has no such"),
    "unique": (18, "(float[4] x) => (float[N] y) { [n] y = Unique(x) }", "Unique n: TensorRT has no such operator"),
    "dft": (18, "(float[1,4,1] x) => (float[1,4,2] y) { [n] y = DFT(x) }", "DFT n: TensorRT has no such operator"),
    "col2im": (
        18,
        "(float[1,4,1] x, int64[2] s, int64[2] b) => (float[1,1,2,2] y) { [n] y = Col2Im(x, s, b) }",
        "Col2Im n: TensorRT has no such operator",
    ),
    "bitwise": (18, "(int32[4] x) => (int32[4] y) { [n] y = BitwiseNot(x) }", "BitwiseNot n: TensorRT has no such"),
    "cumprod": (
        26,
        "(float[4] x, int64 a) => (float[4] y) { [n] y = CumProd(x, a) }",
        "CumProd n: TensorRT has no such",
    ),
    "sequence": (
        18,
        "(float[4] x, int64 i) => (float[N] y) { [n] s = SplitToSequence(x) [m] y = SequenceAt(s, i) }",
        "SplitToSequence n: TensorRT has no sequences; SequenceAt m: TensorRT has no sequences",
    ),
    "random": (
        18,
        "() => (float[4] y) { [n] y = RandomNormal <shape = [4]> () }",
        "RandomNormal n: it draws by itself, whatever a request's seed; take noise as an input",
    ),
    "bernoulli": (18, "(float[4] x) => (float[4] y) { [n] y = Bernoulli(x) }", "Bernoulli n: it draws by itself"),
    "multinomial": (
        18,
        "(float[1,4] x) => (int32[1,1] y) { [n] y = Multinomial(x) }",
        "Multinomial n: it draws by itself, whatever a request's seed; take noise as an input",
    ),
    "loop": (
        18,
        f"(float[2] x, int64 k, bool c) => (float[2] y) {{ [n] y = Loop <body = {BODY}> (k, c, x) }}",
        "Loop n: a loop belongs to the runtime; unroll it",
    ),
    "inside-if": (
        18,
        "(float[2] x, bool c) => (float[2] y) "
        f"{{ [n] y = If <then_branch = {THEN}, else_branch = e () => (float[2] a) {{ [m] a = Bernoulli(x) }}> (c) }}",
        "Bernoulli m: it draws by itself",
    ),
    "double": (
        18,
        "(float[2] x) => (float[2] y) { d = Cast <to = 11> (x) y = Cast <to = 1> (d) }",
        "tensor d is float64; TensorRT would silently make it float32",
    ),
    "unsigned": (18, "(float[2] x) => (uint32[2] y) { y = Cast <to = 12> (x) }", "tensor y is uint32"),
    "top-k": (
        18,
        "(float[8192] x) => (float[N] y, int64[N] i) <int64[1] k = {3841}> { [n] y, i = TopK(x, k) }",
        "TopK n: K is 3841, wanted at most 3840",
    ),
    "top-k-dynamic": (
        18,
        "(float[8192] x, int64[1] k) => (float[N] y, int64[N] i) { [n] y, i = TopK(x, k) }",
        "TopK n: its K isn't a constant, wanted at most 3840",
    ),
    "attention": (
        23,
        "(float[1,2,4,8] q) => (float[1,2,4,8] y) { [n] y = Attention(q, q, q) }",
        "Attention n: needs TensorRT 10.14; write MatMul, Softmax, MatMul",
    ),
    "rms-norm": (
        23,
        "(float[2,4] x, float[4] s) => (float[2,4] y) { [n] y = RMSNormalization(x, s) }",
        "RMSNormalization n: needs TensorRT 10.15",
    ),
    "rotary": (
        23,
        "(float[1,2,4,8] x, float[1,4,4] c) => (float[1,2,4,8] y) { [n] y = RotaryEmbedding(x, c, c) }",
        "RotaryEmbedding n: needs TensorRT 10.15",
    ),
    "group-norm": (
        21,
        "(float[1,4,2] x, float[4] s) => (float[1,4,2] y) { [n] y = GroupNormalization <num_groups = 2> (x, s, s) }",
        "GroupNormalization n: needs TensorRT 10.9",
    ),
    "antialias": (
        18,
        "(float[1,1,4,4] x, float[4] s) => (float[N,C,H,W] y) "
        "{ [n] y = Resize <antialias = 1, mode = 'linear'> (x, , s) }",
        "Resize n: TensorRT can't resize with antialias",
    ),
    "integer-power": (
        18,
        "(float[4] x, int64 e) => (float[4] y) { [n] y = Pow(x, e) }",
        "Pow n: an integer exponent needs TensorRT 10.8; make it a float",
    ),
    "ellipsis": (
        18,
        "(float[2,3,4] x) => (float[2,4,3] y) { [n] y = Einsum <equation = '...ij->...ji'> (x) }",
        "Einsum n: an ellipsis in its equation needs TensorRT 10.12",
    ),
    "diagonal": (
        18,
        "(float[3,3] x) => (float[3] y) { [n] y = Einsum <equation = 'ii->i'> (x) }",
        "Einsum n: a diagonal in its equation needs TensorRT 10.12",
    ),
    "mixed-sum": (
        18,
        "(float[4] x, float16[4] h) => (float[4] y) { [n] y = Add(x, h) }",
        "Add n mixes types: T: float32 x, float16 h",
    ),
    "mixed-power": (
        18,
        "(float[4] x, float16 h) => (float[4] y) { [n] y = Pow(x, h) }",
        "Pow n mixes types: T: float32 x, float16 h",
    ),
    "mixed-norm": (
        18,
        "(float16[2,4] x, float[4] s) => (float16[2,4] y) { [n] y = LayerNormalization(x, s) }",
        "LayerNormalization n mixes types: T: float16 x, float32 s",
    ),
    "old": (16, "(float[4] x) => (float[4] y) { y = Abs(x) }", "operator set 16, wanted 17 to 20"),
    "new": (21, "(float[4] x) => (float[4] y) { y = Abs(x) }", "operator set 21, wanted 17 to 20"),
    "invalid": (18, "(float[4] x) => (float[4] y) { y = Abs(nothing) }", "not valid ONNX: "),
}


def save(folder: Path, graph: str, opset: int) -> Path:
    graph = graph.replace("'", '"')
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> g {graph}')
    onnx.save(model, path := folder / "step.onnx")
    return path


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str, tmp_path: Path) -> None:
    opset, graph, reason = REFUSED[name]
    with pytest.raises(MmgenError) as error:
        lint(save(tmp_path, graph, opset))
    assert str(error.value).startswith("graph step can't be built for every device: ")
    assert reason in str(error.value)


def test_refuses_a_graph_without_operator_set(tmp_path: Path) -> None:
    model = onnx.load(save(tmp_path, "(float[4] x) => (float[4] y) { y = Abs(x) }", 18))
    del model.opset_import[:]
    onnx.save(model, tmp_path / "step.onnx")
    with pytest.raises(MmgenError, match="its operator set isn't stated"):
        lint(tmp_path / "step.onnx")


def test_refuses_foreign_operators_and_functions(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    nodes = [
        helper.make_node("FusedGelu", ["x"], ["a"], name="n", domain="com.microsoft"),
        helper.make_node("Twice", ["a"], ["y"], name="m", domain="local"),
    ]
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("local", 1)]
    body = [helper.make_node("Add", ["v", "v"], ["w"])]
    twice = helper.make_function("local", "Twice", ["v"], ["w"], body, imports[:1])
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=imports, functions=[twice])
    onnx.save(model, tmp_path / "step.onnx")
    with pytest.raises(MmgenError) as error:
        lint(tmp_path / "step.onnx")
    assert "function local::Twice isn't inlined" in str(error.value)
    assert "FusedGelu n is of the domain 'com.microsoft', not of standard ONNX" in str(error.value)


def test_one_error_names_every_node(tmp_path: Path) -> None:
    text = "(float[4] x, int64 e) => (int64[1,N] y) { [first] p = Pow(x, e) [second] y = NonZero(p) }"
    with pytest.raises(MmgenError, match=r"Pow first: .*; NonZero second: .*; change the model's forward"):
        lint(save(tmp_path, text, 18))


def test_a_type_that_the_file_states_wrongly_is_found(tmp_path: Path) -> None:
    model = onnx.load(
        save(tmp_path, "(float16[4] x, float[4] f) => (float[4] y) { [n] a = Abs(x) [m] y = Add(a, f) }", 18)
    )
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [4]))
    onnx.save(model, tmp_path / "step.onnx")
    with pytest.raises(MmgenError, match="Add m mixes types: T: float16 a, float32 f"):
        lint(tmp_path / "step.onnx")


@pytest.mark.parametrize(
    "graph",
    [
        "(float[4096] x) => (float[N] y, int64[N] i) <int64[1] k = {3840}> { y, i = TopK(x, k) }",
        "(float[4] x, int64[2] i, float[2] u) => (float[4] y) { y = ScatterElements(x, i, u) }",
        "(float[2,3] x, float[3,4] z) => (float[4,2] y) { y = Einsum <equation = 'ij, jk -> ki'> (x, z) }",
        f"(float[2] x, bool c) => (float[2] y) {{ y = If <then_branch = {THEN}, else_branch = {THEN}> (c) }}",
        "(float[4] x, float e) => (float[4] y) { y = Pow(x, e) }",
    ],
)
def test_lets_through(graph: str, tmp_path: Path) -> None:
    lint(save(tmp_path, graph, 18))


def test_lets_through_what_mmgen_writes(tmp_path: Path) -> None:
    model = tiny_model()
    for source in (step_source(model, [("context", torch.randn(6, 2, 32))]), decode_source(model)):
        path, half = tmp_path / f"{source.role}.onnx", tmp_path / f"{source.role}-half.onnx"
        trace(source, path)
        lint(path)
        ranges = measure_ranges(path, [{name: value.numpy() for name, value in source.inputs.items()}])
        to_half(path, half, ranges, role=source.role)
        lint(half)
