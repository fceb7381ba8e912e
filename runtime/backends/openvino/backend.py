"""OpenVINO on the CPU: the bundle's graphs as they are, each compiled for the shapes of its calls.

``openvino`` computes in float32, also what the bundle has in half: few processors have half-precision arithmetic.
``openvino-bf16`` runs the step and the decoder of a half-precision bundle in bfloat16, where the processor has
instructions for it: faster, with three binary digits less than half precision, so ``mmgen verify`` may refuse its
results.  By default OpenVINO uses bfloat16 for everything.  Here the other graphs stay in float32: they cost little,
and hold timesteps, which need the digits.  The search for the nearest codes needs them as well: in bfloat16 a tenth of
the codes would change.  OpenVINO can't mark such a part of a graph, so it is cut off and compiled separately.  The
arithmetic of the solver and on pixels keeps its digits, because OpenVINO leaves what follows the last matrix product of
a graph unchanged.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.host import HostBackend, HostBlock
from mmgen.runtime.backends.memory import Slot
from mmgen.runtime.backends.openvino.norms import channels_last
from mmgen.runtime.backends.protocol import Backend, Block, Call, Runner
from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.fork import claim
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.graph_file import check_tensors, graph_content
from mmgen.runtime.storage.schema import Bundle, Graph, Role, shape_of
from mmgen.runtime.storage.tensors import CODES

Name = Literal["openvino", "openvino-bf16"]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of a graph's inputs, by name
KEPT = 4  # sets of shapes for which a graph stays compiled when nothing is bound to it any more
TELEMETRY = "openvino_telemetry"
BF16: tuple[Role, ...] = ("step", "decode")  # most of a request's time


class OpenVinoRunner:
    """A graph, compiled for the sizes that the bundle was made for, and for others on their first use."""

    def __init__(
        self, openvino: Any, core: Any, path: Path, model: Any, graph: Graph, options: dict[str, Any]
    ) -> None:
        self._openvino, self._core, self._path, self._model, self._options = openvino, core, path, model, options
        self._inputs, self._outputs = ([s.name for s in specs] for specs in (graph.inputs, graph.outputs))
        self._compiled = functools.lru_cache(KEPT)(self._compile)

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        memory = cast(HostBlock, block).host
        compiled = self._compiled(tuple((name, calls[0][name].shape) for name in self._inputs))  # all have the same
        return [self._bind(memory, compiled, tensors) for tensors in calls]

    def prepare(self, axes: dict[str, int], graph: Graph) -> None:
        """Compile for one size before a request needs it."""
        self._compiled(tuple((spec.name, shape_of(spec, axes)) for spec in graph.inputs))

    def _compile(self, shapes: Shapes) -> Any:
        """Compile for fixed shapes, which is faster to run than a graph with unknown sizes."""
        with _explained(f"{self._path}: OpenVINO can't compile it for {_shapes_text(shapes)}", "use --backend ort-cpu"):
            self._model.reshape(dict(shapes))
            return self._core.compile_model(self._model, "CPU", self._options)

    def _bind(self, memory: NDArray[np.uint8], compiled: Any, tensors: Mapping[str, Slot]) -> Call:
        request, tensor = compiled.create_infer_request(), self._openvino.Tensor
        for name in (*self._inputs, *self._outputs):
            request.set_tensor(name, tensor(tensors[name].of(memory), shared_memory=True))
        infer = request.infer

        def call(_alive: object = memory) -> None:  # tensors have addresses, valid as long as the memory lives
            try:
                infer(share_outputs=True)  # its result would otherwise be copied
            except RuntimeError as error:
                raise _failed(f"{self._path} failed in OpenVINO", error, "use --backend ort-cpu") from error

        return call

    def close(self) -> None:
        self._compiled.cache_clear()
        self._model = None


class InTurn:
    """Runners in sequence, each reading the output of the one before."""

    def __init__(self, *parts: Runner) -> None:
        self._parts = parts

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        return [_in_turn(bound) for bound in zip(*(part.bind(block, calls) for part in self._parts), strict=True)]

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _in_turn(calls: Sequence[Call]) -> Call:
    def call() -> None:
        for each in calls:
            each()

    return call


class OpenVino(HostBackend):
    """Graphs that share one set of options."""

    def __init__(self, openvino: Any, name: Name, threads: int | None) -> None:
        self.name: str = name
        self._openvino, self._core = openvino, find_core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # generators that run in parallel would be pinned to the same cores
        }
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        graph = bundle.graphs[role]
        path = bundle.path(graph.file)
        graph_content(bundle, role)  # checks the file that OpenVINO then reads itself, and the files it names
        remedy = "export the bundle again, or use --backend ort-cpu"
        with _explained(f"{path}: OpenVINO can't load it", remedy), as_text(path) as readable:
            model = self._core.read_model(readable)
        check_tensors(f"graph {role}", graph, dict(_tensors(model, graph)))
        channels_last(self._openvino, model)
        if self.name != "openvino-bf16" or role not in BF16:
            return self._part(bundle, path, model, graph, "f32")
        if role != "decode" or CODES not in (spec.name for spec in graph.outputs):  # a step's codes are its result
            return self._part(bundle, path, model, graph, "bf16")
        search, decoder = _cut(self._openvino, model, graph)
        return InTurn(self._part(bundle, path, *search, "f32"), self._part(bundle, path, *decoder, "bf16"))

    def _part(self, bundle: Bundle, path: Path, model: Any, graph: Graph, precision: str) -> OpenVinoRunner:
        options = {**self._options, "INFERENCE_PRECISION_HINT": precision}
        runner = OpenVinoRunner(self._openvino, self._core, path, model, graph, options)
        runner.prepare({name: axis.opt for name, axis in bundle.axes.items()}, graph)
        return runner


def _tensors(model: Any, graph: Graph) -> Iterator[tuple[str, tuple[str, tuple[object, ...]]]]:
    """Yield a model's inputs and outputs: name, and dtype and shape; of several names the manifest's."""
    wanted = {spec.name for spec in (*graph.inputs, *graph.outputs)}
    for port in (*model.inputs, *model.outputs):
        found = port.get_names()
        shape = tuple(size.get_length() if size.is_static else str(size) for size in port.get_partial_shape())
        name = min(found & wanted, default=min(found, default=""))
        yield name, (port.get_element_type().to_dtype().name, shape)


def _cut(openvino: Any, model: Any, graph: Graph) -> tuple[tuple[Any, Graph], tuple[Any, Graph]]:
    """Divide a decoder into the search for codes and the rest: models, and graphs with their inputs and outputs."""
    found = model.output(CODES).node.input_value(0)
    codes = openvino.op.Parameter(found.get_element_type(), found.get_partial_shape())
    codes.output(0).set_names({CODES})
    for reader in found.get_target_inputs():
        if reader.get_node().get_type_name() != "Result":
            reader.replace_source_output(codes.output(0))
    ends = {spec.name: model.output(spec.name).node for spec in graph.outputs}
    (spec,), others = ([s for s in graph.outputs if (s.name == CODES) is is_codes] for is_codes in (True, False))
    search = openvino.Model([ends[CODES]], model.get_parameters())
    decoder = openvino.Model([ends[other.name] for other in others], [codes])
    return (
        (search, dataclasses.replace(graph, outputs=(spec,))),
        (decoder, dataclasses.replace(graph, inputs=(spec,), outputs=tuple(others))),
    )


def open_backend(name: Name, bundle: Bundle | None = None, threads: int | None = None) -> Backend:
    """Open OpenVINO on the CPU.

    Args:
        name: which arithmetic the step graph gets.
        bundle: to run; None: only check whether the backend works here.
        threads: None: OpenVINO's default, one a core.

    Raises:
        MmgenError: OpenVINO isn't installed, this process was forked from one that used it, or bfloat16 was requested
            of a processor without it or for a float32 bundle.
    """
    openvino = find_openvino()
    claim("OpenVINO")
    if name == "openvino-bf16":
        if "BF16" not in find_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MmgenError("this processor has no instructions for bfloat16", remedy="use --backend openvino")
        if bundle is not None and bundle.precision.policy != "fp16":
            raise MmgenError(
                f"bundle {bundle.folder} is float32, and bfloat16 is half precision",
                remedy="export it with --fp16, or use --backend openvino",
            )
    return OpenVino(openvino, name, threads)


@functools.cache
def find_core() -> Any:
    """Return OpenVINO's Core, which lives as long as the process.

    Each Core that finds the CPU replaces the thread's stack for signals, and restores the one before when it is
    destroyed.  If two aren't destroyed in reverse order, or in another thread, that may be freed memory, and the next
    signal, such as Ctrl-C, ends the process with a segmentation fault.
    """
    return find_openvino().Core()


def find_openvino() -> Any:
    """Import OpenVINO with its telemetry switched off.

    Raises:
        MmgenError: it isn't installed, or a library that it needs isn't.
    """
    hidden = TELEMETRY not in sys.modules
    if hidden:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # importing it fails, which OpenVINO tolerates
    try:
        import openvino
    except (ImportError, OSError, MemoryError) as error:
        raise unloaded("OpenVINO", error, extra("openvino")) from error
    finally:
        if hidden:
            del sys.modules[TELEMETRY]
    return openvino


def _shapes_text(shapes: Shapes) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes)


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter for a name in a graph that isn't UTF-8
        raise _failed(what, error, remedy) from error


def _failed(what: str, error: Exception, remedy: str) -> MmgenError:
    return MmgenError(f"{what} ({' '.join(str(error).split())})", remedy=remedy)
