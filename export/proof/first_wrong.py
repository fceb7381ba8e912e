"""The first tensor of a graph that is too far from the reference, with its module and line."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx
from torch.export import ExportedProgram

from mmgen.export.base.origins import where
from mmgen.export.half.islands import LARGEST
from mmgen.export.proof.torch_run import Arrays
from mmgen.runtime.verify import relative_rms

Answer = Callable[[Mapping[str, Any]], Arrays]


def first_wrong(
    made: Mapping[str, ir.Node], got: Answer, wanted: Answer, given: Iterable[Mapping[str, Any]], limit: float
) -> str:
    """Find the operator, tensor, module and line where two computations of a graph diverge; "" if they don't.

    Args:
        made: nodes by the tensor that they make, in the graph's order.
        got: from a call's inputs to these tensors, as computed.
        wanted: the same, as they should be; it may leave some out.
        given: inputs of calls.
        limit: largest relative RMS.
    """
    for inputs in given:
        answers, truths = got(inputs), wanted(inputs)
        for name, node in made.items():
            truth = truths.get(name)
            if truth is None or truth.shape != answers[name].shape or np.abs(truth).max(initial=0) >= LARGEST:
                continue
            if not relative_rms(answers[name], truth) <= limit:
                return ", ".join(filter(None, (f"{node.op_type} {name}", where(node))))
    return ""


def torch_values(program: ExportedProgram, inputs: Iterable[str], wanted: Collection[str]) -> Answer:
    """Return a function from inputs by name to the float32 tensors of these names inside a traced program."""
    module, order = program.module(check_guards=False), tuple(inputs)

    def answer(given: Mapping[str, Any]) -> Arrays:
        found: Arrays = {}

        class Watched(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n.name in wanted and isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                    found[n.name] = value.numpy()
                return value

        with torch.no_grad():
            Watched(module).run(*(torch.from_numpy(np.ascontiguousarray(given[name])) for name in order))
        return found

    return answer
