"""ONNX Runtime on the CPU: the embedded default."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

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
    """Sessions that share one set of options."""

    name = "ort-cpu"

    def __init__(self, onnxruntime: Any, threads: int | None) -> None:
        self._onnxruntime = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3
        # Each graph has threads of its own; those of the step would wait for more while the next graph runs.
        self._options.add_session_config_entry("session.force_spinning_stop", "1")
        if threads is not None:
            self._options.intra_op_num_threads = threads

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        return self.load(bundle.path(bundle.graphs[role].file))

    def load(self, graph: Path) -> Runner:
        """A runner for an ONNX file.

        Raises:
            MmgenError: ONNX Runtime can't load it.
        """
        try:
            session = self._onnxruntime.InferenceSession(graph, self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise MmgenError(
                f"{graph}: ONNX Runtime can't load it ({error})", remedy="export the bundle again"
            ) from error
        return OrtRunner(session)


def open_backend(threads: int | None) -> Backend:
    """Open ONNX Runtime on the CPU; ``threads`` None takes one a core."""
    check_threads(threads)
    try:
        import onnxruntime
    except ImportError as error:
        raise MmgenError("ONNX Runtime is not installed", remedy="pip install 'mmgen[ort]'") from error
    return OrtCpu(onnxruntime, threads)
