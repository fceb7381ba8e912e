"""A network of two nodes and its engine, in any release: what the stand-in for TensorRT is tested with."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from mmgen.runtime.backends.tensorrt.library import make_logger


def model(path: Path | None = None) -> bytes:
    """Y (B, 3) = x (B, 3) half times a constant, plus a constant; external weights where there is a path."""
    weight = np.arange(9, dtype=np.float16).reshape(3, 3)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"], "product"), helper.make_node("Add", ["z", "b"], ["y"], "sum")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["B", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["B", 3])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(np.ones(3, np.float16), "b")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if path is not None:
        onnx.save(made, path, save_as_external_data=True, location=f"{path.name}.data", size_threshold=0)
        return path.read_bytes()
    return bytes(made.SerializeToString())


class Built:
    """A network, and engines of it."""

    def __init__(self, trt: Any, data: bytes | None = None, capabilities: tuple[str, ...] = ("SM86",)) -> None:
        self.trt, self.log, self.capabilities = trt, make_logger(trt), capabilities
        self.log.errors.clear()
        self.builder = trt.Builder(self.log)
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = trt.OnnxParser(self.network, self.log)
        self.parsed = self.parser.parse(model() if data is None else data)

    def config(self, *shapes: tuple[Any, Any, Any]) -> Any:
        config = self.builder.create_builder_config()
        if hasattr(config, "set_compute_capability"):
            config.num_compute_capabilities = len(self.capabilities)
            for i, name in enumerate(self.capabilities):
                assert config.set_compute_capability(getattr(self.trt.ComputeCapability, name), i)
            config.set_flag(self.trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        for least, usual, largest in shapes:
            profile = self.builder.create_optimization_profile()
            profile.set_shape("x", least, usual, largest)
            config.add_optimization_profile(profile)
        return config

    def engine(self, *shapes: tuple[Any, Any, Any]) -> Any:
        shapes = shapes or (((1, 3), (2, 3), (4, 3)),)
        return self.builder.build_serialized_network(self.network, self.config(*shapes))
