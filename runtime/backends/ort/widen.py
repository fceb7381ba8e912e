"""Half-precision graphs for processors that compute in float32: the same arithmetic without intermediate rounding.

ONNX Runtime has few float16 kernels for processors.  It puts casts around other operators, which keep it from fusing
them, and splits some, such as Softmax.  A widened graph has float32 inside.  Values in float16 from outside are cast
once: weights when a session is made, inputs at the start, outputs at the end.
"""

from typing import Any

from mmgen.runtime.backends.ort.onnx_file import FLOAT, FLOAT16, add_node

SUFFIX = ".float32"  # of a value's name, where the value also exists in float16


def widen(graph: Any) -> bool:
    """Make a graph compute in float32 where it did in float16; its inputs, outputs and weights keep their types.

    Args:
        graph: a ``GraphProto``, changed in place.

    Returns:
        Whether there was any float16 in it.
    """
    nodes = list(graph.node)
    given = [weight.name for weight in graph.initializer if weight.data_type == FLOAT16]
    given += [value.name for value in graph.input if _is_half(value)]
    made = {name for node in nodes if _holds_half(node) for name in node.output}
    passed_on = [value.name for value in graph.output if _is_half(value) and value.name not in made]
    wide = {name: f"{name}{SUFFIX}" for name in (*given, *made, *passed_on)}
    if not wide:
        return False

    for value in graph.value_info:  # without their types and shapes, loading takes twice as long
        if _is_half(value) and value.name not in wide:
            value.type.tensor_type.elem_type = FLOAT
    del graph.node[:]
    for name in given:
        add_node(graph, "Cast", [name], [wide[name]], to=FLOAT)
    for node in nodes:
        constant = _holds_half(node)
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == FLOAT16:
                attribute.i = FLOAT
        node.input[:] = [wide.get(name, name) for name in node.input]
        if not constant:
            node.output[:] = [wide.get(name, name) for name in node.output]
        graph.node.append(node)
        for name in node.output if constant else ():
            add_node(graph, "Cast", [name], [wide[name]], to=FLOAT)
    for name in passed_on:
        add_node(graph, "Cast", [wide[name]], [name], to=FLOAT16)
    return True


def _is_half(value: Any) -> bool:
    """Check whether an input or an output is float16."""
    return bool(value.type.tensor_type.elem_type == FLOAT16)


def _holds_half(node: Any) -> bool:
    """Check whether a node's output is a float16 tensor in it, as that of Constant."""
    return any(attribute.t.data_type == FLOAT16 for attribute in node.attribute)
