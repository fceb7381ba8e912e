"""ONNX Runtime on the CPU: the embedded default."""

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime import optimised
from mmgen.runtime.backend import Backend, Block, Call, Runner
from mmgen.runtime.bundle import Bundle, Role
from mmgen.runtime.errors import MmgenError
from mmgen.runtime.host import HostBackend, HostBlock, check_threads
from mmgen.runtime.memory import Slot


class OrtRunner:
    """A graph as an inference session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [i.name for i in session.get_inputs()]
        self._outputs = [o.name for o in session.get_outputs()]

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        memory = cast(HostBlock, block).host
        return [self._bind(memory, tensors) for tensors in calls]

    def _bind(self, memory: NDArray[np.uint8], tensors: Mapping[str, Slot]) -> Call:
        binding, start = self._session.io_binding(), memory.ctypes.data
        for names, bind in ((self._inputs, binding.bind_input), (self._outputs, binding.bind_output)):
            for name in names:
                slot = tensors[name]
                bind(name, "cpu", 0, np.dtype(slot.dtype).type, slot.shape, start + slot.offset)
        run = self._session.run_with_iobinding

        def call(_alive: object = memory) -> None:  # the addresses are valid as long as the memory lives
            run(binding)

        return call

    def close(self) -> None:
        self._session = None


class OrtCpu(HostBackend):
    """Sessions that share one set of options.

    Args:
        onnxruntime: the module.
        threads: None takes one a core.
        keep: write optimised graphs into the bundle, and take those that are there.
    """

    name = "ort-cpu"
    concurrent = True

    def __init__(self, onnxruntime: Any, threads: int | None, *, keep: bool = False) -> None:
        self._onnxruntime, self._threads, self._keep = onnxruntime, threads, keep
        self._options = self._new_options()
        self._optimising = threading.Lock()  # which takes memory, so that graphs wait for each other

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        graph = bundle.path(bundle.graphs[role].file)
        if self._keep:
            identity = optimised.identify(bundle, role, self._onnxruntime)
            if kept := optimised.kept(bundle, role, identity, partial(self._optimise, graph)):
                options = self._new_options()
                options.graph_optimization_level = self._onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
                return OrtRunner(self._session(kept, options))
        return self.load(graph)

    def load(self, graph: Path) -> Runner:
        """A runner for an ONNX file.

        Raises:
            MmgenError: ONNX Runtime can't load it.
        """
        return OrtRunner(self._session(graph, self._options))

    def _new_options(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # One block for all that a graph makes would lie beside the memory that its first run took.
        options.enable_mem_pattern = False
        # Each graph has threads of its own; those of the step would wait for more while the next graph runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return options

    def _optimise(self, graph: Path, to: Path, weights: str) -> None:
        """Write what ONNX Runtime makes of a graph, and its weights as this processor multiplies them."""
        options = self._new_options()
        options.optimized_model_filepath = str(to)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        with self._optimising:
            self._session(graph, options)

    def _session(self, graph: Path, options: Any) -> Any:
        try:
            return self._onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise MmgenError(
                f"{graph}: ONNX Runtime can't load it ({error})", remedy="export the bundle again"
            ) from error


def installed() -> str | None:
    """The version of ONNX Runtime that is here."""
    try:
        import onnxruntime
    except ImportError:
        return None
    return str(onnxruntime.__version__)


def open_backend(threads: int | None, *, keep: bool = False) -> Backend:
    """Open ONNX Runtime on the CPU; arguments as for ``OrtCpu``."""
    check_threads(threads)
    try:
        import onnxruntime
    except ImportError as error:
        raise MmgenError("ONNX Runtime is not installed", remedy="pip install 'mmgen[ort]'") from error
    return OrtCpu(onnxruntime, threads, keep=keep)
