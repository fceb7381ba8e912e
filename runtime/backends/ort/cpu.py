"""ONNX Runtime on the CPU, the default where nothing else is installed.

``ort-cpu-int8`` multiplies the step's large matrices in eight bits; everything else is as in ``ort-cpu``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.backends.host import HostBackend, HostBlock
from mmgen.runtime.backends.memory import Slot
from mmgen.runtime.backends.ort import int8
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.backends.ort.onnx_file import read_model
from mmgen.runtime.backends.ort.session import check_session, explained, failed
from mmgen.runtime.backends.ort.widen import widen
from mmgen.runtime.backends.protocol import Block, Call, Runner
from mmgen.runtime.backends.registry import log
from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import optimised
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.graph_file import graph_content
from mmgen.runtime.storage.schema import Bundle, Graph, Role

Name = Literal["ort-cpu", "ort-cpu-int8"]


class OrtRunner:
    """A graph as an inference session."""

    def __init__(self, session: Any, role: Role, graph: Graph) -> None:
        """Check that a session's inputs and outputs are the manifest's; an MmgenError if they aren't."""
        check_session(session, role, graph)
        self._session, self._role = session, role
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
        run, role = self._session.run_with_iobinding, self._role

        def call(_alive: object = memory) -> None:  # the addresses are valid as long as the memory lives
            try:
                run(binding)
            except Exception as error:  # ONNX Runtime's errors share no base class of their own
                raise failed(f"graph {role} failed in ONNX Runtime", error, "export the bundle again") from error

        return call

    def close(self) -> None:
        self._session = None


class OrtCpu(HostBackend):
    """Sessions with the same number of threads."""

    name = "ort-cpu"

    def __init__(self, onnxruntime: Any, threads: int | None) -> None:
        self._onnxruntime, self._threads = onnxruntime, threads

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        if kept := optimised.find(bundle, role, self._onnxruntime):
            options = self.new_options()
            options.graph_optimization_level = self._onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            if role != "step":  # runs once a request
                # From the second run on, it would allocate one block for all of a graph's tensors, besides the first
                # run's memory; and its threads would take time from the other graphs while these are loaded.
                options.enable_mem_pattern = False
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                return OrtRunner(self.session(kept, options), role, bundle.graphs[role])
            except MmgenError as error:
                log.warning("%s, so it isn't used", error.what)
        return OrtRunner(self.load(bundle, role, self.new_options()), role, bundle.graphs[role])

    def load(self, bundle: Bundle, role: Role, options: Any) -> Any:
        """Load a graph of a bundle as a session that computes in float32."""
        path, content = bundle.path(bundle.graphs[role].file), graph_content(bundle, role)
        model = read_model(content)
        with _names_read(path):
            if model is not None and widen(model.graph):
                content = model.SerializeToString()
        return self.session(path, options, content)

    def optimise(self, bundle: Bundle, role: Role, waiting: Callable[[], None]) -> tuple[Path, bool]:
        """Optimise a graph for this processor unless it is; arguments and results are ``optimised.make``'s."""
        return optimised.make(bundle, role, self._onnxruntime, partial(self._write, bundle, role), waiting)

    def new_options(self) -> Any:
        """Make the options that all sessions share."""
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Each graph has threads of its own; the step's would spin while the next graph runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return options

    def _write(self, bundle: Bundle, role: Role, to: Path, weights: str) -> None:
        """Write the graph that ``load`` makes, and its weights next to it as this processor multiplies them."""
        options = self.new_options()
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
        with as_text(to) as writable:
            options.optimized_model_filepath = str(writable)
            try:
                self.load(bundle, role, options)
            except MmgenError as error:
                self.load(bundle, role, self.new_options())  # raises the same error if the graph is wrong
                what = f"{to.parent.parent}: ONNX Runtime can't write there what it makes of the graph {role}"
                raise MmgenError(what, remedy=f"make room, or {optimised.ELSEWHERE}") from error

    def session(self, graph: Path, options: Any, content: bytes | None = None) -> Any:
        """Open a session for an ONNX file, or for content instead of the file's own, with the weights in its folder.

        Raises:
            MmgenError: ONNX Runtime can't load it.
        """
        with explained(f"{graph}: ONNX Runtime can't load it", "export the bundle again"), as_text(graph) as readable:
            if content is not None:
                key = "session.model_external_initializers_file_folder_path"
                options.add_session_config_entry(key, str(readable.parent))
            source = readable if content is None else content
            return self._onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OrtInt8(OrtCpu):
    """The same, except for the large matrices of the step."""

    name = "ort-cpu-int8"

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        if role != "step":
            return super().runner(bundle, role)
        graph = bundle.graphs[role]
        path, weights = bundle.path(graph.file), None if graph.data is None else bundle.path(graph.data)
        model = read_model(graph_content(bundle, role))
        with _names_read(path):
            if model is not None:
                widen(model.graph)
            if model is None or not int8.quantise(model.graph, weights, int8.largest_weight()):
                raise MmgenError(f"{path} has no products that int8 would make faster", remedy="use --backend ort-cpu")
        return OrtRunner(self.session(path, self.new_options(), model.SerializeToString()), role, graph)


@contextmanager
def _names_read(path: Path) -> Iterator[None]:
    """Turn protobuf's error into ours: messages decode a name when it is read, and may find that it isn't UTF-8."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise MmgenError(f"{path} is not ONNX (a name that is no UTF-8)", remedy="export or copy it again") from error


def installed() -> str | None:
    """Return the version of the installed ONNX Runtime, or None."""
    try:
        return str(import_onnxruntime().__version__)
    except ImportError:
        return None


def optimise(bundle: Bundle, progress: Callable[[str, float], None]) -> list[tuple[Path, bool]]:
    """Optimise all graphs of a bundle for this processor, for ``ort-cpu`` to use; see ``optimised``.

    Args:
        bundle: as read.
        progress: called with what is being done and the share that is done.

    Returns:
        Their folders, and whether each existed already.

    Raises:
        MmgenError: ONNX Runtime isn't installed or can't load a graph, or the bundle can't be written.
    """
    backend = open_backend("ort-cpu")
    made = []
    roles = list(bundle.graphs)
    for number, role in enumerate(roles):
        done = number / len(roles)
        progress(f"optimising {role}", done)
        waiting = partial(progress, f"waiting for another process that optimises {role}", done)
        made.append(backend.optimise(bundle, role, waiting))
    return made


def open_backend(name: Name, bundle: object = None, threads: int | None = None) -> OrtCpu:
    """Open ONNX Runtime on the CPU; ``threads`` None: one a core."""
    try:
        onnxruntime = import_onnxruntime()
    except (ImportError, OSError, MemoryError) as error:
        raise unloaded("ONNX Runtime", error, extra("ort")) from error
    return (OrtInt8 if name == "ort-cpu-int8" else OrtCpu)(onnxruntime, threads)
