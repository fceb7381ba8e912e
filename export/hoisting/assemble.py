"""Nodes of a traced step graph in a graph of their own, where the first axis means something else."""

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from mmgen.export.hoisting.branch_axes import BranchAxes, Depends, behind

Space = Depends  # what a first axis counts: the branch batch (R, ...), evaluations (N, ...) or every pair (N R, ...)
CONDITION: Space = frozenset({"condition"})
TIMESTEP: Space = frozenset({"timestep"})
JOINT: Space = CONDITION | TIMESTEP
_FIRST = {CONDITION: "R", TIMESTEP: "N", JOINT: "N*R"}  # names of the first axis


class Assembly:
    """A graph that grows; its nodes come in the order in which they were added."""

    def __init__(self, graph: ir.Graph, branched: BranchAxes) -> None:
        self.graph = graph
        self._branched = branched
        self._taken = {v.name for v in (*graph.inputs, *graph.initializers.values())}
        self._taken |= {v.name for node in graph for v in node.outputs} | {node.name for node in graph}
        self._copies: dict[tuple[ir.Value, Space | None], ir.Value] = {}  # None: constants, the same in all spaces
        self._sources: dict[Space, ir.Value] = {}  # a tensor whose first axis has a space's length
        self._counts: dict[Space, ir.Value] = {}  # int64 (1,): that length
        self._numbers: dict[tuple[int, ...], ir.Value] = {}

    def source(self, space: Space, value: ir.Value) -> None:
        """Record a tensor whose first axis has the length of a space."""
        self._sources.setdefault(space, value)

    def define(self, original: ir.Value, space: Space, value: ir.Value) -> None:
        """Record what stands for a tensor of the step graph in a space."""
        self._copies[original, space] = value

    def input(self, name: str, dtype: ir.DataType | None, shape: Sequence[int | str]) -> ir.Value:
        """Add an input."""
        value = ir.Value(name=self._name(name), shape=ir.Shape(shape), type=_type(dtype))
        self.graph.inputs.append(value)
        return value

    def output(self, name: str, value: ir.Value, shape: Sequence[int | str]) -> None:
        """Add an output."""
        made = self.add("Identity", [value], shape, value.dtype, name=name)
        self.graph.outputs.append(made)

    def add(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        shape: Sequence[int | str],
        dtype: ir.DataType | None,
        attributes: dict[str, Any] | None = None,
        name: str | None = None,
    ) -> ir.Value:
        """Add a node with one output."""
        node = ir.node(kind, inputs, attributes or {}, name=self._name(f"hoisted_{kind}"))
        (made,) = node.outputs
        made.name, made.shape = self._name(name or f"hoisted_{kind.lower()}"), ir.Shape(shape)
        made.type = _type(dtype)
        self.graph.append(node)
        return made

    def numbers(self, *numbers: int) -> ir.Value:
        """Return an int64 constant."""
        if numbers not in self._numbers:
            name = self._name("hoisted_" + "_".join(map(str, numbers)).replace("-", "m"))
            tensor = ir.tensor(list(numbers), ir.DataType.INT64, name=name)
            value = ir.Value(
                name=name, shape=ir.Shape([len(numbers)]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor
            )
            self.graph.register_initializer(value)
            self._numbers[numbers] = value
        return self._numbers[numbers]

    def count(self, space: Space) -> ir.Value:
        """Return the length of a space's first axis, int64 (1,)."""
        if space not in self._counts:
            int64 = ir.DataType.INT64
            if space == JOINT:
                count = self.add("Mul", [self.count(TIMESTEP), self.count(CONDITION)], [1], int64)
            else:
                count = self.add("Shape", [self._sources[space]], [1], int64, {"start": 0, "end": 1})
            self._counts[space] = count
        return self._counts[space]

    def concat(self, parts: Sequence[ir.Value], axis: int, shape: Sequence[int | str]) -> ir.Value:
        """Concatenate tensors of one type."""
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, shape, parts[0].dtype, {"axis": axis})

    def sizes(self, *parts: ir.Value | int) -> ir.Value:
        """Build a shape of computed lengths and numbers."""
        return self.concat([self.numbers(p) if isinstance(p, int) else p for p in parts], 0, [len(parts)])

    def reshape(self, value: ir.Value, rest: Sequence[int], first: int | str) -> ir.Value:
        """Reshape the axes behind the first."""
        return self.add("Reshape", [value, self.numbers(-1, *rest)], [first, *rest], value.dtype)

    def split(self, pack: ir.Value, sizes: Sequence[int], first: int | str) -> list[ir.Value]:
        """Split a tensor (first, sum of sizes) into tensors (first, size)."""
        if len(sizes) == 1:
            return [pack]
        name = self._name("hoisted_Split")
        node = ir.node("Split", [pack, self.numbers(*sizes)], {"axis": 1}, num_outputs=len(sizes), name=name)
        for value, size in zip(node.outputs, sizes, strict=True):
            value.name, value.shape, value.type = self._name("hoisted_split"), ir.Shape([first, size]), pack.type
        self.graph.append(node)
        return list(node.outputs)

    def move(self, node: ir.Node, space: Space) -> None:
        """Copy a node of the step graph into a space; what it reads has been copied before."""
        moved = ir.Node(
            node.domain,
            node.op_type,
            self._inputs(node, space),
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=self._name(node.name or node.op_type),
            metadata_props=dict(node.metadata_props),
        )
        for original, made in zip(node.outputs, moved.outputs, strict=True):
            constant = original in self._branched.constant
            made.name, made.type = self._name(original.name or "hoisted"), original.type
            made.shape = original.shape if constant else ir.Shape([_FIRST[space], *(behind(original) or ())])
            self._copies[original, None if constant else space] = made
        self.graph.append(moved)

    def get(self, value: ir.Value, space: Space) -> ir.Value:
        """Return what stands for a tensor of the step graph in a space, adding it where needed."""
        if value in self._branched.constant:
            return self._constant(value)
        if (value, space) in self._copies:
            return self._copies[value, space]
        depends = self._branched.depends[value]
        if not depends:
            producer = value.producer()
            assert producer is not None  # an Expand, or what was made of one
            self.move(producer, space)
        else:
            self._copies[value, space] = self._spread(self._copies[value, depends], depends)
        return self._copies[value, space]

    def _constant(self, value: ir.Value) -> ir.Value:
        if (value, None) not in self._copies:
            producer = value.producer()
            if producer is not None:
                self.move(producer, CONDITION)  # constants are the same in every space
                return self._copies[value, None]
            copy = ir.Value(
                name=self._name(value.name or "weight"),
                shape=value.shape,
                type=value.type,
                const_value=value.const_value,
            )
            self.graph.register_initializer(copy)
            self._copies[value, None] = copy
        return self._copies[value, None]

    def _inputs(self, node: ir.Node, space: Space) -> list[ir.Value | None]:
        """Return a node's inputs, with a new shape where one depends on the length of the first axis."""
        shape = {"Expand": 1, "Reshape": 1, "ConstantOfShape": 0}.get(node.op_type)
        rest = behind(node.outputs[0]) or ()
        inputs: list[ir.Value | None] = []
        for i, value in enumerate(node.inputs):
            if value is None or i != shape or value in self._branched.constant:
                inputs.append(None if value is None else self.get(value, space))
            elif node.op_type == "Reshape":
                inputs.append(self.numbers(-1, *rest))
            elif node.inputs[0] in self._branched.depends:  # it has the first axis already; a 1 leaves it as it is
                inputs.append(self.numbers(1, *rest))
            else:
                inputs.append(self.sizes(self.count(space), *rest))
        return inputs

    def _spread(self, value: ir.Value, depends: Depends) -> ir.Value:
        """Expand (N, ...) or (R, ...) to (N R, ...)."""
        rest = behind(value) or ()
        axis, pair = (1, ("N", 1)) if depends == TIMESTEP else (0, (1, "R"))
        value = self.add("Unsqueeze", [value, self.numbers(axis)], [*pair, *rest], value.dtype)
        shape = self.sizes(self.count(TIMESTEP), self.count(CONDITION), *(1 for _ in rest))
        value = self.add("Expand", [value, shape], ["N", "R", *rest], value.dtype)
        return self.reshape(value, rest, _FIRST[JOINT])

    def _name(self, wanted: str) -> str:
        name, n = wanted, 0
        while name in self._taken:
            n += 1
            name = f"{wanted}_{n}"
        self._taken.add(name)
        return name


def _type(dtype: ir.DataType | None) -> ir.TensorType | None:
    return None if dtype is None else ir.TensorType(dtype)
