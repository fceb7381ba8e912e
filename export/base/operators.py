"""What kinds of ONNX operators there are, as far as numeric precision goes."""

import onnx_ir as ir

# fmt: off
COPIES = frozenset({  # outputs hold values of the inputs and nothing else
    "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements",
    "GatherND", "Identity", "Pad", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
})
BLENDS = COPIES | {"Add", "Max", "Min", "Mul", "Sub"}  # how a mask gets into what it masks
SUMS = frozenset({
    "CumSum", "GlobalAveragePool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean",
    "ReduceProd", "ReduceSum", "ReduceSumSquare", "STFT",
})
STATISTICS = frozenset({  # from a sum to one over a deviation
    "Add", "Clip", "Div", "Max", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub",
})
LOOKUPS = frozenset({"Gather", "GatherElements", "GatherND"})  # take from their first input what the second says
BOUNDED = frozenset({"Cos", "Erf", "HardSigmoid", "OneHot", "Sigmoid", "Sign", "Sin", "Softsign", "Tanh"})
SATURATING = frozenset({"Erf", "HardSigmoid", "Sigmoid", "Tanh"})  # bounded, at infinity too
SOFTMAX = frozenset({"LogSoftmax", "Softmax"})
NORMS = SOFTMAX | {
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
}
DIVISIONS = {"Div": 1, "Log": 0, "Pow": 0, "Reciprocal": 0, "Sqrt": 0}  # which input must not be, or come near, 0
PRODUCTS = frozenset({"Einsum", "Gemm", "MatMul"})
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "GRU", "LSTM", "RNN"})
# fmt: on


def values(node: ir.Node) -> list[ir.Value]:
    """Return a node's inputs, without those that were left out."""
    return [value for value in node.inputs if value is not None]


def is_weight(value: ir.Value | None) -> bool:
    """Return whether a value is an initialiser with at least two axes longer than 1."""
    return value is not None and value.const_value is not None and sum(d != 1 for d in value.const_value.shape) > 1


def has_weights(node: ir.Node) -> bool:
    """Return whether a node is a product, or a convolution, with weights."""
    return node.op_type in PRODUCTS | CONVOLUTIONS and any(map(is_weight, node.inputs))


def is_layer(node: ir.Node) -> bool:
    """Return whether magnitudes after a node are the network's own, and no longer those of its inputs."""
    return node.op_type in NORMS or node.op_type in CONVOLUTIONS or has_weights(node)
