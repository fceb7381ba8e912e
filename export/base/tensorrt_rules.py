"""What TensorRT doesn't support of ONNX: the safe set of TensorRT 10.3, and of it what TensorRT for RTX compiles.

JetPack 6 has TensorRT 10.3, the oldest that mmgen builds for; its rules are read from its ONNX parser's source and
tables of operators.  Those of TensorRT for RTX 1.7 were found by compiling a small graph for each.
"""

from collections.abc import Callable, Iterator

import onnx_ir as ir

from mmgen.export.base.dtypes import name_of

OPSETS = range(17, 21)
AXES = 8  # of a tensor
TOP_K = 3840  # entries

_NONE = "TensorRT has no such operator"
_SEQUENCES = "TensorRT has no sequences"
REFUSED = {
    **dict.fromkeys(("NonZero", "Unique", "Compress", "DFT", "Col2Im", "CumProd", "Det", "AffineGrid"), _NONE),
    **dict.fromkeys(("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"), _NONE),
    **dict.fromkeys(("CenterCropPad", "MaxUnpool", "MaxRoiPool", "RoiAlign", "DeformConv", "MelWeightMatrix"), _NONE),
    **dict.fromkeys(("NonMaxSuppression", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), _NONE),
    **dict.fromkeys(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear"), _NONE),
    **dict.fromkeys(("ImageDecoder", "RegexFullMatch", "TfIdfVectorizer"), _NONE),
    **dict.fromkeys(("StringConcat", "StringNormalizer", "StringSplit"), _NONE),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"), _SEQUENCES),
    **dict.fromkeys(("SequenceInsert", "SequenceLength", "SequenceMap"), _SEQUENCES),
    **dict.fromkeys(("SplitToSequence", "ConcatFromSequence"), _SEQUENCES),
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), "TensorRT has no optional values"),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), "needs TensorRT 10.4; make it a buffer"),
    "STFT": "needs TensorRT 10.5; write it as a convolution with sines and cosines",
    "Loop": "a loop belongs to the runtime; unroll it",
    "Attention": "needs TensorRT 10.14; write MatMul, Softmax, MatMul",
    "RMSNormalization": "needs TensorRT 10.15; write it as Mul, ReduceMean, Sqrt, Div",
    "RotaryEmbedding": "needs TensorRT 10.15; write it as Mul and Add",
}
TYPES = frozenset(
    getattr(ir.DataType, name) for name in ("BOOL", "UINT8", "INT8", "INT32", "INT64", "FLOAT16", "BFLOAT16", "FLOAT")
)
RESIZES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
ROOTS = ("ReduceL2", "ReduceLogSum", "ReduceLogSumExp")  # end in a root or a logarithm, which whole numbers have not
REDUCTIONS = (
    "ReduceL1", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", *ROOTS,
)  # fmt: skip
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")
CARRIERS = ("Cast", "CastLike", "Identity", "Shape", "Size")  # what may read or make uint8


def opset_reason(model: ir.Model) -> str | None:
    """Return why TensorRT can't read a graph's operator set; None if it can."""
    match model.opset_imports.get(""):
        case None:
            return "its operator set isn't stated"
        case opset if opset not in OPSETS:
            return f"operator set {opset}, wanted {OPSETS.start} to {OPSETS.stop - 1}"
    return None


def node_reason(node: ir.Node, opset: int) -> str | None:
    """Return why TensorRT doesn't support a node; None if, as far as is known, it does."""
    if reason := REFUSED.get(node.op_type):
        return reason
    checks: tuple[Callable[[ir.Node, int], str | None], ...] = (_form, _constants, _whole_numbers, _axes, _bytes)
    return next((reason for check in checks if (reason := check(node, opset))), None)


def type_reasons(model: ir.Model) -> Iterator[str]:
    """Yield a reason for each type of tensor that TensorRT doesn't have, naming the first such tensor."""
    found: dict[ir.DataType, list[ir.Value]] = {}
    for graph in model.graphs():
        tensors = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
        for value in dict.fromkeys(tensors):
            if value.dtype is not None and (value.dtype not in TYPES or _unquantised(value)):
                found.setdefault(value.dtype, []).append(value)
    for dtype, (first, *more) in found.items():
        what = f"tensor {first.name} is" if not more else f"{len(more) + 1} tensors, {first.name} the first, are"
        match dtype:
            case ir.DataType.DOUBLE:
                also = "; TensorRT would silently make it float32"
            case ir.DataType.INT8:
                also = "; TensorRT takes such constants for quantised weights only"
            case _:
                also = ""
        yield f"{what} {name_of(dtype)}{also}"


def _form(node: ir.Node, opset: int) -> str | None:
    """Check a node's attributes and its number of outputs."""
    text, number = node.attributes.get_string, node.attributes.get_int
    outputs = [value for value in node.outputs if value.name and (value.uses() or value.is_graph_output())]
    match node.op_type:
        case "ScatterElements" | "ScatterND" if text("reduction", "none") != "none":
            return "TensorRT scatters without a reduction only"
        case "GroupNormalization" if opset >= 21:
            return "needs TensorRT 10.9; export with an operator set before 21"
        case "Resize" if number("antialias", 0):
            return "TensorRT can't resize with antialias"
        case "Resize" if (mode := text("coordinate_transformation_mode", "half_pixel")) not in RESIZES:
            return f"TensorRT can't resize by {mode}; write one of {', '.join(RESIZES)}"
        case "Resize" if text("keep_aspect_ratio_policy", "stretch") != "stretch":
            return "TensorRT doesn't keep the aspect ratio; give sizes that do"
        case "MaxPool" | "AveragePool" | "LpPool" if any(n != 1 for n in node.attributes.get_ints("dilations", ())):
            return "TensorRT pools without dilation only"
        case "MaxPool" if len(outputs) > 1:
            return "TensorRT's pooling doesn't say where the largest was"
        case "LayerNormalization" if len(outputs) > 1:
            return "TensorRT doesn't give its mean and deviation"
        case "BatchNormalization" if number("training_mode", 0):
            return "TensorRT has no training; call eval()"
        case "LSTM" if number("input_forget", 0):
            return "TensorRT has no LSTM whose input and forget gates are one"
        case "LSTM" | "GRU" | "RNN" if number("layout", 0):
            return "TensorRT and ONNX Runtime want time first"
        case "LSTM" | "GRU" | "RNN" if _input(node, 4) is not None and _is_half(node):
            return "with lengths of sequences TensorRT for RTX takes it in float32 only"
        case "LSTM" | "GRU" | "RNN" if (names := list(node.attributes.get_strings("activations", ()))):
            middle = len(names) // 2
            if text("direction", "forward") == "bidirectional" and names[:middle] != names[middle:]:
                return "TensorRT wants the same activations in both directions"
        case "Einsum":
            equation = text("equation", "").replace(" ", "")
            terms = equation.partition("->")[0].split(",")
            if "..." in equation:
                return "an ellipsis in its equation needs TensorRT 10.12; name every axis"
            if any(len(set(term)) < len(term) for term in terms):
                return "a diagonal in its equation needs TensorRT 10.12"
            if equation != equation.lower():
                return "TensorRT takes small letters in its equation only"
    return None


def _constants(node: ir.Node, _: int) -> str | None:
    """Check the inputs that must be known when an engine is built."""
    match node.op_type:
        case "TopK":
            k = _input(node, 1)
            if k is None or (count := ir.convenience.get_const_tensor(k)) is None:
                return f"its K isn't a constant, wanted at most {TOP_K}"
            if (most := int(count.numpy().reshape(-1)[0])) > TOP_K:
                return f"K is {most}, wanted at most {TOP_K}"
        case "Squeeze" | "Unsqueeze" | "CumSum" if _varies(_input(node, 1)):
            return "TensorRT wants constant axes"
        case kind if kind in REDUCTIONS and _varies(_input(node, 1)):
            return "TensorRT wants constant axes"
        case "Pad" if _varies(_input(node, 3)):
            return "needs TensorRT 10.4; make its axes constant"
        case "Resize" if _varies(_input(node, 2)):
            return "TensorRT wants constant scales; give sizes"
        case "OneHot" if _varies(_input(node, 1)):
            return "TensorRT wants a constant number of classes"
        case "EyeLike" if not _is_static(node.inputs[0]):
            return "TensorRT wants fixed sizes; make it a buffer"
        case "Squeeze" if _input(node, 1) is None and not _is_static(node.inputs[0]):
            return "TensorRT wants axes where sizes vary; name them"
        case "Range" if _is_float(node.inputs[0]) and not all(map(_made_of_shapes, node.inputs)):
            return "TensorRT for RTX wants bounds that values don't decide; count with whole numbers"
        case "Dropout" if (training := _input(node, 2)) is not None:
            on = ir.convenience.get_const_tensor(training)
            if on is None or on.numpy().any():
                return "TensorRT has no training; call eval()"
    return None


def _whole_numbers(node: ir.Node, _: int) -> str | None:
    """Check for integers in operators that take floating-point numbers only."""
    value = node.inputs[0] if node.inputs else None
    dtype = value.dtype if value is not None else None
    if dtype is None:
        return None
    wanted = f"TensorRT doesn't take {name_of(dtype)}; make it a float"
    match node.op_type:
        case "Pow" if (exponent := _input(node, 1)) and exponent.dtype and exponent.dtype.is_integer():
            return "an integer exponent needs TensorRT 10.8; make it a float"
        case "MatMul" | "Gemm" | "Einsum" | "PRelu" if dtype.is_integer():
            return wanted
        case "Relu" if dtype == ir.DataType.INT32:
            return wanted
        case "Resize" | "GridSample" if dtype.is_integer() or dtype == ir.DataType.BOOL:
            return wanted
        case kind if kind in ROOTS and dtype.is_integer():
            return wanted
        case kind if kind in REDUCTIONS and dtype == ir.DataType.BOOL:
            return wanted
    return None


def _axes(node: ir.Node, _: int) -> str | None:
    """Check how many axes the tensors have."""
    ranks = [len(v.shape) if v is not None and v.shape is not None else None for v in (*node.inputs, *node.outputs)]
    if most := max((rank for rank in ranks if rank is not None), default=0):
        if most > AXES:
            return f"TensorRT has at most {AXES} axes, got {most}"
        match node.op_type, ranks[0] if node.inputs else None:
            case "ArgMax" | "ArgMin", 1:
                return "TensorRT wants at least two axes; put one before"
            case "InstanceNormalization", 2:
                return "TensorRT wants at least three axes; put one behind"
            case "Conv" | "ConvTranspose", int(rank) if rank > 5:
                return f"TensorRT has convolutions over up to 3 axes, got {rank - 2}"
            case "GridSample", 5:
                return "TensorRT 10.3 samples from grids of two axes only"
            case "Resize", int(rank) if rank != 4 and node.attributes.get_string("mode", "nearest") == "cubic":
                return "TensorRT and ONNX Runtime resize by cubes over two axes only"
    return None


def _bytes(node: ir.Node, _: int) -> str | None:
    """Check for uint8, which TensorRT has only as inputs and outputs of a graph; constants are exempt."""
    read = [value for value in node.inputs if value is not None and value.dtype == ir.DataType.UINT8]
    made = [value for value in node.outputs if value.dtype == ir.DataType.UINT8]
    if read and all(value.const_value is not None for value in read):
        return None
    inside = any(not value.is_graph_output() or value.uses() for value in made)
    if inside or ((read or made) and node.op_type not in CARRIERS):
        return "TensorRT has uint8 as input and output only; cast to int32"
    return None


def _unquantised(value: ir.Value) -> bool:
    """Return whether an int8 constant is used as plain numbers, not as a quantised weight."""
    constant = value.const_value is not None and value.dtype == ir.DataType.INT8
    return constant and any(use.op_type not in QUANTISERS for use in value.consumers())


def _input(node: ir.Node, i: int) -> ir.Value | None:
    return node.inputs[i] if len(node.inputs) > i else None


def _varies(value: ir.Value | None) -> bool:
    """Return whether an input is present and isn't a constant."""
    return value is not None and ir.convenience.get_const_tensor(value) is None


def _is_static(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and value.shape.is_static()


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def _is_half(node: ir.Node) -> bool:
    return any(value.dtype == ir.DataType.FLOAT16 for value in node.outputs)


def _made_of_shapes(value: ir.Value | None) -> bool:
    """Return whether a tensor is a constant, or computed from constants and the shapes of others alone."""
    waiting: list[ir.Value | None] = [value]
    seen = set()
    while waiting:
        if (one := waiting.pop()) is None or one in seen or one.const_value is not None:
            continue
        seen.add(one)
        if (producer := one.producer()) is None:
            return False
        if producer.op_type not in ("Shape", "Size"):
            waiting.extend(producer.inputs)
    return True
