"""The stand-in's builder: ONNX in, a network to look at, and an "engine" that holds the model and what was asked.

A node becomes one layer and an initializer a constant; the real parser adds shape arithmetic of its own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from standin_objects import Object, Plain

MAGIC = b"standin-engine\n"
TYPES = {
    TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.INT32: "INT32", TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL", TensorProto.UINT8: "UINT8", TensorProto.INT8: "INT8", TensorProto.BFLOAT16: "BF16",
}  # fmt: skip
ACTIVATIONS = {
    "Clip": "CLIP", "Relu": "RELU", "Sigmoid": "SIGMOID", "Tanh": "TANH", "LeakyRelu": "LEAKY_RELU",
    "Gelu": "GELU_ERF", "Elu": "ELU",
}  # fmt: skip
LAYERS = {
    "ACTIVATION": tuple(ACTIVATIONS),
    "CAST": ("Cast",),
    "CONCATENATION": ("Concat",),
    "CONSTANT": ("Constant",),
    "CONVOLUTION": ("Conv",),
    "DECONVOLUTION": ("ConvTranspose",),
    "ELEMENTWISE": ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Equal", "Less", "Greater", "And", "Or", "Mod",
                    "LessOrEqual", "GreaterOrEqual"),
    "GATHER": ("Gather", "GatherElements", "GatherND"),
    "IDENTITY": ("Identity", "Dropout"),
    "MATRIX_MULTIPLY": ("MatMul", "Gemm"),
    "NORMALIZATION": ("LayerNormalization", "InstanceNormalization", "GroupNormalization"),
    "REDUCE": ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "GlobalAveragePool"),
    "RESIZE": ("Resize",),
    "SELECT": ("Where",),
    "SHAPE": ("Shape",),
    "SHUFFLE": ("Reshape", "Transpose", "DepthToSpace", "SpaceToDepth", "Flatten", "Squeeze", "Unsqueeze"),
    "SLICE": ("Slice", "Split", "Expand", "Pad", "Tile"),
    "SOFTMAX": ("Softmax",),
    "TOPK": ("TopK", "ArgMax", "ArgMin"),
    "UNARY": ("Sin", "Cos", "Neg", "Exp", "Sqrt", "Round", "Abs", "Erf", "Reciprocal", "Log", "Not", "Floor"),
}
LAYER_OF = {operator: layer for layer, operators in LAYERS.items() for operator in operators}
REJECTED = {"NonZero", "Unique", "DFT", "Col2Im", "Bernoulli", "Multinomial", "CumProd", "BitwiseAnd", "BitwiseOr"}


@dataclass
class Node:
    """A layer: what is the same for all classes that show it."""

    name: str
    kind: str
    inputs: list[str]
    outputs: list[str]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    activation: str = ""


class Dims(tuple):  # type: ignore[type-arg]
    """Extents; -1 where they aren't known."""


class ITensor(Object):
    def _begin(self, network: Any, name: str) -> None:
        self._network, self._name = network, name

    name = property(lambda self: self._name)
    dtype = property(lambda self: getattr(self._library.module.DataType, self._network._types[self._name][0]))
    shape = property(lambda self: Dims(-1 if isinstance(d, str) else d for d in self._network._types[self._name][1]))
    is_network_input = property(lambda self: self._name in self._network._inputs)
    is_network_output = property(lambda self: self._name in self._network._outputs)
    is_shape_tensor = property(lambda self: False)
    is_execution_tensor = property(lambda self: True)

    def get_dimension_name(self, index: int) -> str | None:
        extent = self._network._types[self._name][1][index]
        return extent if isinstance(extent, str) and self.is_network_input else None


class ILayer(Object):
    def _begin(self, network: Any, node: Node) -> None:
        self._network, self._node = network, node

    name = property(lambda self: self._node.name)
    type = property(lambda self: getattr(self._library.module.LayerType, self._node.kind))
    metadata = property(lambda self: "")
    num_inputs = property(lambda self: len(self._node.inputs))
    num_outputs = property(lambda self: len(self._node.outputs))

    def get_input(self, index: int) -> Any:
        return self._tensor(self._node.inputs, index)

    def get_output(self, index: int) -> Any:
        return self._tensor(self._node.outputs, index)

    def get_output_type(self, index: int) -> Any:
        return self.get_output(index).dtype

    def _tensor(self, names: list[str], index: int) -> Any:
        return self._library.make("ITensor", self._network, names[index]) if index < len(names) else None


class IActivationLayer(ILayer):
    """Seen as its own class, whose type is the activation's."""

    type = property(lambda self: getattr(self._library.module.ActivationType, self._node.activation))


class _Weighty(ILayer):
    """A layer seen as its own class, as ``layer.__class__ = ...`` does in the real bindings."""

    def _weights(self, name: str) -> Any:
        if self._node.kind not in type(self)._kinds:
            raise self._library.misuse(f"layer {self._node.name} is a {self._node.kind}, seen as {type(self).__name__}")
        found = self._node.weights.get(name)
        return self._library.make("Weights") if found is None else found.reshape(-1)


class IConstantLayer(_Weighty):
    _kinds = ("CONSTANT",)
    weights = property(lambda self: self._weights("weights"))
    shape = property(lambda self: Dims(self._node.weights["weights"].shape))


class IConvolutionLayer(_Weighty):
    _kinds = ("CONVOLUTION",)
    kernel = property(lambda self: self._weights("kernel"))
    bias = property(lambda self: self._weights("bias"))


class IDeconvolutionLayer(IConvolutionLayer):
    _kinds = ("DECONVOLUTION",)


class Weights(Object):
    """None."""

    def _begin(self) -> None:
        pass

    size = property(lambda self: 0)
    nbytes = property(lambda self: 0)
    dtype = property(lambda self: self._library.module.DataType.FLOAT)


class INetworkDefinition(Object):
    name = Plain("name", "Unnamed Network 0")

    def _begin(self, flags: int, typed: bool) -> None:
        self._flags, self._typed, self._model = flags, typed, None
        self._types: dict[str, tuple[str, tuple[int | str, ...]]] = {}
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._layers: list[Node] = []

    flags = property(lambda self: self._flags)
    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._inputs))
    num_outputs = property(lambda self: len(self._outputs))

    def get_flag(self, flag: Any) -> bool:
        return bool(self._flags >> int(flag) & 1)

    def get_layer(self, index: int) -> Any:
        return self._at("ILayer", self._layers, index)

    def get_input(self, index: int) -> Any:
        return self._at("ITensor", self._inputs, index)

    def get_output(self, index: int) -> Any:
        return self._at("ITensor", self._outputs, index)

    def _at(self, kind: str, things: list[Any], index: int) -> Any:
        if 0 <= index < len(things):
            return self._library.make(kind, self, things[index])
        self._library.log("ERROR", f"INetworkDefinition: Error Code 3: no {kind} {index}")
        return None

    def _read(self, model: onnx.ModelProto) -> None:
        """Fill in from a model whose weights are inside.

        Raises:
            ValueError: an operator that is rejected, or types that don't fit, naming the node.
        """
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
        weights = {w.name: numpy_helper.to_array(w) for w in inferred.initializer}
        for value in (*inferred.input, *inferred.output, *inferred.value_info):
            tensor = value.type.tensor_type
            extents = tuple(d.dim_param or (d.dim_value if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
            self._types[value.name] = (TYPES[tensor.elem_type], extents)
        for weight in inferred.initializer:
            self._types[weight.name] = (TYPES[weight.data_type], tuple(weight.dims))
        self._model = model
        self._inputs = [i.name for i in inferred.input if i.name not in weights]
        self._outputs = [o.name for o in inferred.output]
        convolutions = [node for node in inferred.node if node.op_type in ("Conv", "ConvTranspose")]
        inside = {name for node in convolutions for name in node.input[1:]}
        for name, array in weights.items():
            if name not in inside:
                self._layers.append(Node(name, "CONSTANT", [], [name], {"weights": array}))
        for number, node in enumerate(inferred.node):
            self._layers.append(self._layer(number, node, weights))

    def _layer(self, number: int, node: onnx.NodeProto, weights: dict[str, np.ndarray]) -> Node:
        where = f"In node {number} with name: {node.name} and operator: {node.op_type}"
        if node.op_type in REJECTED:
            raise ValueError(f"{where} (checkFallbackPluginImporter): UNSUPPORTED_NODE: no importer")
        if node.op_type not in LAYER_OF:
            raise self._library.misuse(f"the stand-in knows no ONNX operator {node.op_type}")
        inputs, outputs = [i for i in node.input if i], [o for o in node.output if o]
        kind = LAYER_OF[node.op_type]
        types = {self._types[i][0] for i in inputs}
        if kind in ("ELEMENTWISE", "MATRIX_MULTIPLY") and node.op_type != "Pow" and len(types) > 1:
            raise ValueError(f"{where}: INVALID_NODE: operands of types {sorted(types)}")
        layer = Node(node.name or node.output[0], kind, inputs, outputs, activation=ACTIVATIONS.get(node.op_type, ""))
        if kind in ("CONVOLUTION", "DECONVOLUTION"):
            layer.inputs = inputs[:1]
            layer.weights = {key: weights[n] for key, n in zip(("kernel", "bias"), inputs[1:], strict=False)}
        elif kind == "CONSTANT":
            layer.weights = {"weights": numpy_helper.to_array(node.attribute[0].t)}
        return layer


class OnnxParser(Object):
    def __init__(self, network: Any, logger: Any) -> None:
        self._library.take_logger(logger)
        self._network, self._errors = network, []

    num_errors = property(lambda self: len(self._errors))
    flags = property(lambda self: 1)

    def get_error(self, index: int) -> Any:
        return self._errors[index]

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse(self, model: Any, path: str | None = None) -> bool:
        if not isinstance(path, (str, type(None))):
            raise TypeError("parse(): incompatible function arguments")
        return self._parse(bytes(model), Path(path).parent if path else None)

    def parse_from_file(self, model: str) -> bool:
        if not isinstance(model, str):
            raise TypeError("parse_from_file(): incompatible function arguments")
        if not Path(model).is_file():
            return self._fail("INVALID_VALUE", f"Input file cannot be found, or is not a regular file: {model}")
        return self._parse(Path(model).read_bytes(), Path(model).parent)

    def _parse(self, data: bytes, folder: Path | None) -> bool:
        if self._library.fails("parse"):
            return self._fail("INTERNAL_ERROR", "made to fail")
        try:
            model = onnx.load_from_string(data)
        except Exception:
            return self._fail("MODEL_DESERIALIZE_FAILED", "Failed to parse the ONNX model.")
        external = [w for w in model.graph.initializer if w.data_location == TensorProto.EXTERNAL]
        if external:
            if folder is None:
                return self._fail("INVALID_VALUE", f"{external[0].name}: external weights and no path of the model")
            try:
                onnx.load_external_data_for_model(model, str(folder))
            except Exception as error:
                return self._fail("INVALID_VALUE", f"Failed to open file: {error}")
        try:
            self._network._read(model)
        except (ValueError, onnx.shape_inference.InferenceError) as error:
            return self._fail("UNSUPPORTED_NODE", str(error))
        return True

    def _fail(self, code: str, message: str) -> bool:
        self._errors.append(self._library.make("ParserError", code, message))
        self._library.log("ERROR", message)
        return False


class ParserError(Object):
    def _begin(self, code: str, message: str) -> None:
        self._code, self._message = code, message

    def code(self) -> Any:
        return getattr(self._library.module.ErrorCode, self._code)

    def desc(self) -> str:
        return self._message

    def node(self) -> int:
        return -1

    def file(self) -> str:
        return "standin.cpp"

    def line(self) -> int:
        return 1

    def func(self) -> str:
        return "parse"

    def node_name(self) -> str:
        return ""

    def node_operator(self) -> str:
        return ""


def pack(header: dict[str, Any], model: onnx.ModelProto) -> bytes:
    """A serialized "engine"."""
    text = json.dumps(header).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + model.SerializeToString(deterministic=True)


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the model.

    Raises:
        ValueError: it isn't whole, or isn't one.
    """
    if not data.startswith(MAGIC):
        raise ValueError("Magic tag does not match")
    start = len(MAGIC) + 8
    size = int.from_bytes(data[len(MAGIC) : start], "little")
    header = json.loads(data[start : start + size])
    model = data[start + size :]
    if len(model) != header["model_bytes"]:
        raise ValueError("Assertion bufferSize >= minBufferSize failed.")
    return header, model


def dynamic(types: dict[str, tuple[str, tuple[int | str, ...]]], names: list[str]) -> Iterator[str]:
    """Those with extents that aren't known."""
    return (name for name in names if any(isinstance(extent, str) for extent in types[name][1]))
