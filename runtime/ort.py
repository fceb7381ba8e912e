"""ONNX Runtime on the CPU: the embedded default.  Buffers are numpy arrays, bound by address."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backend import Backend, Buffer, Runner
from mmgen.runtime.errors import MmgenError


class OrtRunner:
    """A graph as an inference session."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = [i.name for i in session.get_inputs()]
        self._outputs = [o.name for o in session.get_outputs()]

    def bind(self, tensors: Mapping[str, Buffer]) -> Callable[[], None]:
        binding = self._session.io_binding()
        kept = [np.asarray(tensors[name]) for name in (*self._inputs, *self._outputs)]
        for name, array in zip(self._inputs, kept, strict=False):
            binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        for name, array in zip(self._outputs, kept[len(self._inputs) :], strict=True):
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        run = self._session.run_with_iobinding

        def call(_alive: object = kept) -> None:  # the addresses are valid as long as the arrays live
            run(binding)

        return call

    def close(self) -> None:
        self._session = None


class OrtCpu:
    """Sessions that share one set of options."""

    name = "ort-cpu"

    def __init__(self, onnxruntime: Any, threads: int | None) -> None:
        self._onnxruntime = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.log_severity_level = 3
        if threads is not None:
            self._options.intra_op_num_threads = threads

    def empty(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        return np.empty(shape, dtype)

    def upload(self, array: NDArray[np.generic]) -> Buffer:
        return np.ascontiguousarray(array)

    def read(self, buffer: Buffer) -> NDArray[Any]:
        return np.array(buffer)

    def runner(self, graph: Path) -> Runner:
        try:
            session = self._onnxruntime.InferenceSession(graph, self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise MmgenError(
                f"{graph}: ONNX Runtime can't load it ({error})", remedy="export the bundle again"
            ) from error
        return OrtRunner(session)

    def close(self) -> None:
        """Nothing outlives the sessions."""


def open_backend(threads: int | None) -> Backend:
    """Open ONNX Runtime on the CPU; ``threads`` None takes one a core."""
    if threads is not None and threads < 1:
        raise MmgenError("threads", got=threads, wanted="at least 1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MmgenError("ONNX Runtime is not installed", remedy="pip install 'mmgen[ort]'") from error
    return OrtCpu(onnxruntime, threads)
