"""Half-precision graphs for processors that compute in float32: the same arithmetic, nothing rounded on the way.

ONNX Runtime has few float16 kernels for processors.  It puts casts around other operators, which keep it from fusing
them, and takes some apart, such as Softmax.  A widened graph has float32 inside.  What comes from outside in float16 is
cast once: weights when a session is made, inputs first of all, outputs at the end.
"""

from typing import Any

from mmgen.runtime.backends.ort.onnx_file import FLOAT, FLOAT16, add_node

SUFFIX = ".float32"  # of a value's name, where it is also there in float16


def widen(graph: Any) -> bool:
    """Have a graph compute in float32 where it did in float16; its inputs, outputs and weights keep their types.

    Args:
        graph: a ``GraphProto``, changed in place.

    Returns:
        Whether there was any float16 in it.
    """
    nodes = list(graph.node)
    given = [weight.name for weight in graph.initializer if weight.data_type == FLOAT16]
    given += [value.name for value in graph.input if _is_half(value)]
    made = {name for node in nodes if _holds_half(node) for name in node.output}
    told = [value.name for value in graph.output if _is_half(value) and value.name not in made]
    wide = {name: f"{name}{SUFFIX}" for name in (*given, *made, *told)}
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
    for name in told:
        add_node(graph, "Cast", [wide[name]], [name], to=FLOAT16)
    return True


def _is_half(value: Any) -> bool:
    """Whether an input or an output is float16."""
    return bool(value.type.tensor_type.elem_type == FLOAT16)


def _holds_half(node: Any) -> bool:
    """Whether a node makes what a float16 tensor in it says, such as Constant."""
    return any(attribute.t.data_type == FLOAT16 for attribute in node.attribute)
