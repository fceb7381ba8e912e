"""Step graphs written by hand: the inputs that matter to hoisting, and whatever a test puts behind them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

BRANCH_BATCH = "B*G"  # as the tracer calls the axis


class Graph:
    """state (4, B, 4), timestep (1,), guidance (G,), noise (B, 4), and conditioning (G, B, ...)."""

    def __init__(self) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="step")
        self.model = ir.Model(graph, ir_version=10)
        self._inputs = {
            name: self._input(name, shape)
            for name, shape in {
                "state": (4, "B", 4),
                "timestep": (1,),
                "guidance": ("G",),
                "noise": ("B", 4),
            }.items()
        }
        self._made = 0
        self.others = {  # values for what isn't conditioning
            name: np.zeros([size if isinstance(size, int) else 1 for size in value.shape or ()], np.float32)
            for name, value in self._inputs.items()
        }

    def time(self) -> ir.Value:
        """Expand the timestep to (R,)."""
        guides = self.op("Shape", [self._inputs["guidance"]], first=1, dtype="INT64")
        batch = self.op("Shape", [self._inputs["noise"]], first=1, dtype="INT64", start=0, end=1)
        self._count = self.op("Mul", [guides, batch], first=1, dtype="INT64")
        return self.op("Expand", [self._inputs["timestep"], self._count])

    def sizes(self, *rest: int) -> ir.Value:
        """Build the shape (R, ...)."""
        return self.op("Concat", [self._count, list(rest)], first=1 + len(rest), dtype="INT64", axis=0)

    def conditioning(self, name: str, *shape: int, dtype: str = "FLOAT") -> ir.Value:
        """Add a conditioning tensor (R, ...)."""
        grouped = self._input(name, ("G", "B", *shape), dtype)
        return self.op("Reshape", [grouped, [-1, *shape]], *shape, dtype=dtype)

    def latents(self, *shape: int) -> ir.Value:
        """Build what varies (R, ...): the latents of every sample, once for each branch."""
        x = self.op("Gather", [self._inputs["state"], np.array(0)], 4, first="B", axis=0)
        x = self.op("Expand", [x, self.op("Shape", [self.repeated()], first=3, dtype="INT64")], "B", 4, first="G")
        return self.op("Reshape", [x, [-1, *shape]], *shape)

    def repeated(self) -> ir.Value:
        """Build zeros (G, B, 4)."""
        guides = self.op("Shape", [self._inputs["guidance"]], first=1, dtype="INT64")
        latents = self.op("Shape", [self._inputs["noise"]], first=2, dtype="INT64")
        shape = self.op("Concat", [guides, latents], first=3, dtype="INT64", axis=0)
        return self.op("ConstantOfShape", [shape], "B", 4, first="G")

    def op(
        self,
        kind: str,
        inputs: Sequence[Any],
        *rest: int | str,
        first: int | str = BRANCH_BATCH,
        dtype: str = "FLOAT",
        **attributes: Any,
    ) -> ir.Value:
        """Add a node with one output (first, *rest); arrays, numbers and lists of whole numbers become constants."""
        node = ir.node(kind, [v if isinstance(v, ir.Value) else self._constant(v) for v in inputs], attributes)
        (made,) = node.outputs
        self._made += 1
        made.name, made.shape, made.type = f"{kind.lower()}_{self._made}", ir.Shape([first, *rest]), _type(dtype)
        self.model.graph.append(node)
        return made

    def output(self, value: ir.Value) -> None:
        self.model.graph.outputs.append(value)

    def finish(self, out: ir.Value) -> None:
        """Turn what a denoiser returns (R, 4) into the outputs of a step."""
        grouped = self.op(
            "Reshape", [out, self.op("Shape", [self.repeated()], first=3, dtype="INT64")], "B", 4, first="G"
        )
        x0 = self.op("ReduceSum", [grouped, [0]], 4, first="B", keepdims=0)
        x0.name = "x0"
        state = self.op("Add", [self._inputs["state"], x0], "B", 4, first=4)
        state.name = "next_state"
        self.output(state)
        self.output(x0)

    def bytes(self) -> bytes:
        return ir.to_proto(self.model).SerializeToString()

    def save(self, folder: Path) -> None:
        ir.save(self.model, folder / "step.onnx", external_data="step.onnx.data", size_threshold_bytes=1024)

    def _input(self, name: str, shape: Sequence[int | str], dtype: str = "FLOAT") -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=_type(dtype))
        self.model.graph.inputs.append(value)
        return value

    def _constant(self, number: Any) -> ir.Value:
        whole = isinstance(number, list) or (isinstance(number, np.ndarray) and number.dtype.kind == "i")
        array = np.asarray(number, np.int64 if whole else np.float32)
        name = f"weight_{len(self.model.graph.initializers)}"
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=_type("INT64" if whole else "FLOAT"),
            const_value=ir.tensor(array, name=name),
        )  # fmt: skip
        self.model.graph.register_initializer(value)
        return value


def _type(dtype: str) -> ir.TensorType:
    return ir.TensorType(getattr(ir.DataType, dtype))


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
