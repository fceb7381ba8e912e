"""Which operators keep the branch batch's entries apart: found by dataflow, checked by running single entries."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from tiny_graph import BRANCH_BATCH, Graph, weight

from mmgen.export.hoisting.branch_axes import find_branch_axes

Value = ir.Value


# What is computed from a conditioning tensor (R, 3, 4), and the sizes of its axes behind the first.
APART: dict[str, Callable[[Graph, Value], Value]] = {
    "elementwise": lambda g, x: g.op("Tanh", [x], 3, 4),
    "constant entry": lambda g, x: g.op("Mul", [x, weight(1, 3, 4)], 3, 4),
    "constant of less axes": lambda g, x: g.op("Add", [x, weight(3, 1)], 3, 4),
    "two tensors": lambda g, x: g.op("Mul", [x, g.op("Exp", [x], 3, 4)], 3, 4),
    "matrix": lambda g, x: g.op("MatMul", [x, weight(4, 5)], 3, 5),
    "product of entries": lambda g, x: g.op("MatMul", [x, g.op("Transpose", [x], 4, 3, perm=[0, 2, 1])], 3, 3),
    "matrix from the left": lambda g, x: g.op("MatMul", [weight(1, 2, 3), x], 2, 4),
    "gemm": lambda g, x: g.op("Gemm", [g.op("Reshape", [x, [-1, 12]], 12), weight(5, 12), weight(5)], 5, transB=1),
    "reshape": lambda g, x: g.op("Reshape", [x, [-1, 2, 6]], 2, 6),
    "reshape, copied axis": lambda g, x: g.op("Reshape", [x, [0, 12]], 12),
    "flatten": lambda g, x: g.op("Flatten", [x], 12),
    "sum": lambda g, x: g.op("ReduceSum", [x, [1]], 4, keepdims=0),
    "mean over the last axes": lambda g, x: g.op("ReduceMean", [x, [-1, -2]], 1, 1),
    "softmax": lambda g, x: g.op("Softmax", [x], 3, 4, axis=-1),
    "norm": lambda g, x: g.op("LayerNormalization", [x, weight(3, 4)], 3, 4, axis=1),
    "part": lambda g, x: g.op("Slice", [x, [1], [3], [2]], 3, 2),
    "one of an axis": lambda g, x: g.op("Gather", [x, np.array(1)], 4, axis=1),
    "joined": lambda g, x: g.op("Concat", [x, x], 6, 4, axis=1),
    "padded": lambda g, x: g.op("Pad", [x, [0, 0, 1, 0, 0, 0]], 3, 5),
    "new axis": lambda g, x: g.op("Unsqueeze", [x, [1]], 1, 3, 4),
    "repeated inside one": lambda g, x: g.op("Expand", [g.op("Unsqueeze", [x, [1]], 1, 3, 4), [1, 5, 3, 4]], 5, 3, 4),
    "running sum": lambda g, x: g.op("CumSum", [x, np.array(1)], 3, 4),
    "embedding": lambda g, x: g.op(
        "Gather", [weight(9, 2), g.op("Cast", [g.op("Clip", [x, 0.0, 8.0], 3, 4)], 3, 4, dtype="INT64", to=7)], 3, 4, 2
    ),
}
MIXED: dict[str, Callable[[Graph, Value], Value]] = {
    "sum over entries": lambda g, x: g.op("ReduceSum", [x, [0]], 3, 4, first=1),
    "sum over all": lambda g, x: g.op("ReduceMax", [x], 1, 1, first=1),
    "softmax over entries": lambda g, x: g.op("Softmax", [x], 3, 4, axis=0),
    "norm over entries": lambda g, x: g.op("LayerNormalization", [x, weight(3, 4)], 3, 4, axis=-3),
    "first axis swapped with another": lambda g, x: g.op("Transpose", [x], BRANCH_BATCH, 4, perm=[1, 0, 2], first=3),
    "another axis folded into the first": lambda g, x: g.op("Reshape", [x, [-1, 4]], 4, first="3*B*G"),
    "entries made of parts of others": lambda g, x: g.op("Reshape", [x, [-1, 3, 2]], 3, 2, first="2*B*G"),
    "backwards": lambda g, x: g.op("Slice", [x, [-1], [-9], [0], [-1]], 3, 4),
    "the first entry": lambda g, x: g.op("Gather", [x, np.array(0)], 4, axis=0, first=3),
    "running sum over entries": lambda g, x: g.op("CumSum", [x, np.array(0)], 3, 4),
    "entries one after the other": lambda g, x: g.op("Concat", [x, x], 3, 4, axis=0, first="2*B*G"),
    "a constant for each entry": lambda g, x: g.op("Mul", [x, weight(6, 3, 4)], 3, 4, first=6),
    "summed by a product": lambda g, x: g.op("MatMul", [weight(2, 6), g.op("Flatten", [x], 12)], 12, first=2),
    "against other entries": lambda g, x: g.op(
        "MatMul",
        [g.op("Flatten", [x], 12), g.op("Transpose", [g.op("Flatten", [x], 12)], BRANCH_BATCH, perm=[1, 0], first=12)],
        BRANCH_BATCH,
    ),
    "an operator nobody knows": lambda g, x: g.op("Einsum", [x, x], 3, 3, equation="rij,rkj->rik"),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_entries_stay_apart(name: str) -> None:
    graph = Graph()
    made = APART[name](graph, graph.conditioning("context", 3, 4))
    graph.output(made)
    assert find_branch_axes(graph.model.graph, ["context"]).depends[made] == {"condition"}

    run = onnxruntime.InferenceSession(graph.bytes()).run
    context = weight(2, 3, 3, 4)
    (together,) = run(None, graph.others | {"context": context})
    alone = [run(None, graph.others | {"context": entry[None, None]})[0] for entry in context.reshape(6, 3, 4)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MIXED)
def test_entries_are_not_followed_through_what_may_mix_them(name: str) -> None:
    graph = Graph()
    made = MIXED[name](graph, graph.conditioning("context", 3, 4))
    graph.output(made)
    assert made not in find_branch_axes(graph.model.graph, ["context"]).depends
    onnxruntime.InferenceSession(graph.bytes())  # the graph is one


def test_what_a_tensor_depends_on_follows_it() -> None:
    graph = Graph()
    time, context, x = graph.time(), graph.conditioning("context", 4), graph.latents(4)
    waves = graph.op("Unsqueeze", [graph.op("Sin", [time]), [1]], 1)
    constant = graph.op("Exp", [weight(1, 4)], 4, first=1)
    asked = graph.op("Gemm", [context, weight(4, 4)], 4)
    both = graph.op("Mul", [waves, asked], 4)
    future = graph.op("Expand", [constant, graph.sizes(4)], 4)
    joined = graph.op("Concat", [both, future], 8, axis=1)
    varying = graph.op("Add", [both, x], 4)
    graph.output(graph.op("Concat", [joined, varying], 12, axis=1))
    found = find_branch_axes(graph.model.graph, ["context"])
    assert found.depends[waves] == {"timestep"}
    assert found.depends[asked] == {"condition"}
    assert found.depends[both] == found.depends[joined] == {"condition", "timestep"}
    assert found.depends[future] == frozenset() and constant in found.constant
    assert x not in found.depends and varying not in found.depends
