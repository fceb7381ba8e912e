"""An ONNX file as a torch module: ONNX Runtime runs it, and the exporter puts its graph into what it traces."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.library import custom_op

from mmgen.export.base.answer import answers
from mmgen.export.graph_files.reading import GraphFile, read_graph_file
from mmgen.runtime.base.choices import did_you_mean, either
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.storage.schema import TensorSpec

PROBES = 3  # samples to find the sizes of outputs with

_opened: "WeakValueDictionary[str, OnnxModule]" = WeakValueDictionary()  # by the name that a traced call has
_numbers = itertools.count()


class OnnxModule(nn.Module):
    """A graph that exists only as ONNX, in place of a torch module, or inside one.

    Its forward runs ONNX Runtime on the file as it is.  So what a bundle is compared with at export is the file's own
    results.  Its float32 weights are buffers, named as in the file with "_" for what Python's names don't have.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        inputs: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        """Open an ONNX file.

        Args:
            path: the file; its first axis is the batch in all inputs and outputs, and of no fixed size.
            inputs: names of the graph's inputs in the order in which the forward takes them; None: the graph's order.
            outputs: names of the graph's outputs to return, several as a tuple; None: all.

        Raises:
            MmgenError: the file isn't what ``read_graph_file`` takes, or ONNX Runtime can't load it; a name that the
                graph doesn't have, an input that is left out, a batch of a fixed size.
        """
        super().__init__()
        self.file: GraphFile = read_graph_file(Path(path))
        name = self.file.path.name
        given = tuple(self.file.inputs) if inputs is None else tuple(inputs)
        wanted = tuple(self.file.outputs) if outputs is None else tuple(outputs)
        self.inputs: tuple[TensorSpec, ...] = tuple(named(name, "input", n, self.file.inputs) for n in given)
        self.outputs: tuple[TensorSpec, ...] = tuple(named(name, "output", n, self.file.outputs) for n in wanted)
        if left := [n for n in self.file.inputs if n not in given]:
            what = f"{name}: input {left[0]!r} is left out"
            raise MmgenError(what, got=either(given), wanted=either(self.file.inputs))
        for what, spec in (*(("input", s) for s in self.inputs), *(("output", s) for s in self.outputs)):
            if not spec.shape or isinstance(spec.shape[0], int):
                raise MmgenError(
                    f"{name}: first axis of {what} {spec.name!r}",
                    got=spec.shape[0] if spec.shape else "none",
                    wanted="a batch of any size",
                    remedy="export the model with a dynamic first axis",
                )
        self.weights: tuple[str, ...] = self._take_weights()
        self.key = f"{re.sub(r'[^a-zA-Z0-9]', '_', self.file.path.stem)}_{next(_numbers)}"
        self._answer = answers(f"in {name}", self.file.path)
        self._sizes: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}
        _opened[self.key] = self

    def _take_weights(self) -> tuple[str, ...]:
        """Make buffers of the float32 weights; return their names in the file."""
        found = []
        for name, value in self.file.model.graph.initializers.items():
            if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
                self.register_buffer(buffer_of(name), torch.from_numpy(np.array(value.const_value.numpy())))
                found.append(name)
        return tuple(found)

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the graph: tensors (B, ...) in the order of ``inputs``.

        Raises:
            MmgenError: other tensors than the graph takes, or ONNX Runtime fails.
        """
        self.check(inputs)
        made = run_file(list(inputs), [self.get_buffer(buffer_of(name)) for name in self.weights], self.key)
        return made[0] if len(made) == 1 else tuple(made)

    def check(self, inputs: Sequence[Tensor]) -> None:
        """Check the number, types and sizes of inputs."""
        name = self.file.path.name
        if len(inputs) != len(self.inputs):
            wanted = ", ".join(spec.name for spec in self.inputs)
            raise MmgenError(f"{name}: number of inputs", got=len(inputs), wanted=f"{len(self.inputs)}: {wanted}")
        for tensor, spec in zip(inputs, self.inputs, strict=True):
            sizes, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
            fits = len(sizes) == len(spec.shape) and all(
                not isinstance(wanted, int) or size == wanted for size, wanted in zip(sizes, spec.shape, strict=True)
            )
            if dtype != spec.dtype or not fits:
                raise MmgenError(
                    f"{name}: input {spec.name!r}", got=f"{dtype} {_written(sizes)}",
                    wanted=f"{spec.dtype} {_written(spec.shape)}",
                    remedy="change the description of the model, or call the file from a module that converts",
                )  # fmt: skip

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the file in ONNX Runtime."""
        arrays = {spec.name: x.detach().contiguous().numpy() for spec, x in zip(self.inputs, inputs, strict=True)}
        made = self._answer(arrays)
        return [torch.from_numpy(made[spec.name]) for spec in self.outputs]

    def sizes(self, inputs: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """Return the sizes behind the batch of each output, for inputs of known sizes behind the batch."""
        if all(isinstance(size, int) for spec in self.outputs for size in spec.shape[1:]):
            return [tuple(int(size) for size in spec.shape[1:]) for spec in self.outputs]
        key = tuple(tuple(int(size) for size in x.shape[1:]) for x in inputs)
        if key not in self._sizes:
            zeros = [np.zeros((PROBES, *rest), spec.dtype) for rest, spec in zip(key, self.inputs, strict=True)]
            made = self._answer({spec.name: x for spec, x in zip(self.inputs, zeros, strict=True)})
            self._sizes[key] = [made[spec.name].shape[1:] for spec in self.outputs]
        return self._sizes[key]


def buffer_of(name: str) -> str:
    """Return the name of a weight's buffer."""
    return re.sub(r"\W", "_", f"weight_{name}")


def opened(key: str) -> OnnxModule:
    """Return the module that a traced call means."""
    return _opened[key]


def named(file: str, what: str, name: str, known: Mapping[str, TensorSpec]) -> TensorSpec:
    """Return the input or output of a name.

    Raises:
        MmgenError: the graph has none of that name.
    """
    if name not in known:
        raise MmgenError(f"{file} has no {what} {name!r}", wanted=either(known), remedy=did_you_mean(name, known))
    return known[name]


def _written(shape: Sequence[Any]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


@custom_op("mmgen::onnx_file", mutates_args=())
def run_file(inputs: list[Tensor], weights: list[Tensor], file: str) -> list[Tensor]:
    """Run an ONNX file; ``weights`` go into the traced graph, and aren't needed here, where the file has them."""
    return opened(file).run(inputs)


@run_file.register_fake
def _(inputs: list[Tensor], weights: list[Tensor], file: str) -> list[Tensor]:
    module = opened(file)
    batch = inputs[0].shape[0]
    return [
        inputs[0].new_empty((batch, *rest), dtype=getattr(torch, spec.dtype))
        for spec, rest in zip(module.outputs, module.sizes(inputs), strict=True)
    ]
