"""OpenVINO on the CPU: the bundle's graphs as they are, each compiled for the shapes that it meets.

``openvino`` computes in float32, also what the bundle has in half: few processors have arithmetic for that.
``openvino-bf16`` runs the step graph of a half-precision bundle in bfloat16, where the processor has instructions for
it: faster, with three binary digits less than half precision, so ``mmgen verify`` may refuse what it makes.  Left to
itself OpenVINO takes bfloat16 for everything.  Here the other graphs stay in float32: they run once a request, and
hold timesteps and a search for the nearest code, which need the digits.  The solver's arithmetic keeps them too,
because OpenVINO leaves what comes after the last matrix product of a graph as it is.
"""

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backend import Backend, Block, Call, Runner
from mmgen.runtime.bundle import Bundle, Graph, Role
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.host import HostBackend, HostBlock, check_threads
from mmgen.runtime.memory import Slot, shape_of

Name = Literal["openvino", "openvino-bf16"]
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of a graph's inputs, by name
KEPT = 4  # sets of shapes for which a graph stays compiled when nothing is bound to it any more
TELEMETRY = "openvino_telemetry"


class OpenVinoRunner:
    """A graph, compiled for the sizes that the bundle was made for, and for others when they are met."""

    def __init__(self, openvino: Any, core: Any, path: Path, graph: Graph, options: dict[str, Any]) -> None:
        self._openvino, self._core, self._path, self._options = openvino, core, path, options
        self._inputs, self._outputs = ([s.name for s in specs] for specs in (graph.inputs, graph.outputs))
        with _explained(f"{path}: OpenVINO can't load it", "export the bundle again"):
            self._model = core.read_model(path)
        self._compiled = functools.lru_cache(KEPT)(self._compile)

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        memory = cast(HostBlock, block).host
        compiled = self._compiled(tuple((name, calls[0][name].shape) for name in self._inputs))  # all have the same
        return [self._bind(memory, compiled, tensors) for tensors in calls]

    def prepare(self, axes: dict[str, int], graph: Graph) -> None:
        """Compile for one size before a request asks for it."""
        self._compiled(tuple((spec.name, shape_of(spec, axes)) for spec in graph.inputs))

    def _compile(self, shapes: Shapes) -> Any:
        """Faster than what OpenVINO makes of a graph whose sizes it doesn't know."""
        with _explained(f"{self._path}: OpenVINO can't compile it for {_told(shapes)}", "use --backend ort-cpu"):
            self._model.reshape(dict(shapes))
            return self._core.compile_model(self._model, "CPU", self._options)

    def _bind(self, memory: NDArray[np.uint8], compiled: Any, tensors: Mapping[str, Slot]) -> Call:
        request, tensor = compiled.create_infer_request(), self._openvino.Tensor
        for name in (*self._inputs, *self._outputs):
            request.set_tensor(name, tensor(tensors[name].of(memory), shared_memory=True))
        infer = request.infer

        def call(_alive: object = memory) -> None:  # tensors have addresses, valid as long as the memory lives
            infer(share_outputs=True)  # what it returns would be copies

        return call

    def close(self) -> None:
        self._compiled.cache_clear()
        self._model = None


class OpenVino(HostBackend):
    """Graphs that share one set of options."""

    def __init__(self, openvino: Any, name: Name, threads: int | None) -> None:
        self.name: str = name
        self._openvino, self._core = openvino, openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # generators that run in parallel would be pinned to the same cores
        }
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        graph = bundle.graphs[role]
        half = role == "step" and self.name == "openvino-bf16"
        options = {**self._options, "INFERENCE_PRECISION_HINT": "bf16" if half else "f32"}
        runner = OpenVinoRunner(self._openvino, self._core, bundle.path(graph.file), graph, options)
        runner.prepare({name: axis.opt for name, axis in bundle.axes.items()}, graph)
        return runner


def open_backend(name: Name, bundle: Bundle | None, threads: int | None) -> Backend:
    """Open OpenVINO on the CPU.

    Args:
        name: which arithmetic the step graph gets.
        bundle: what is to run; None asks whether the backend can be had at all.
        threads: None takes what OpenVINO finds best, one a core.

    Raises:
        MmgenError: OpenVINO isn't here, or bfloat16 was asked for of a processor without it or of a float32 bundle.
    """
    check_threads(threads)
    openvino = find_openvino()
    if name == "openvino-bf16":
        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise MmgenError("this processor has no instructions for bfloat16", remedy="use --backend openvino")
        if bundle is not None and bundle.precision.policy != "fp16":
            raise MmgenError(
                f"bundle {bundle.folder} is float32, and bfloat16 is half precision",
                remedy="export it with --fp16, or use --backend openvino",
            )
    return OpenVino(openvino, name, threads)


def find_openvino() -> Any:
    """Import OpenVINO, which reports that to its makers over the network; here it doesn't.

    Raises:
        MmgenError: it isn't installed, or a library that it needs isn't.
    """
    hidden = TELEMETRY not in sys.modules
    if hidden:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # importing it fails, which OpenVINO takes in its stride
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise MmgenError("OpenVINO is not installed", remedy="pip install 'mmgen[openvino]'") from error
    except (ImportError, OSError) as error:
        raise MmgenError(f"OpenVINO can't be loaded ({error})", remedy="pip install 'mmgen[openvino]'") from error
    finally:
        if hidden:
            del sys.modules[TELEMETRY]
    return openvino


def _told(shapes: Shapes) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes)


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise MmgenError(f"{what} ({' '.join(str(error).split())})", remedy=remedy) from error
