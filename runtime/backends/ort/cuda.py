"""ONNX Runtime on a GPU: the bundle's graphs as they are, in the memory and on the stream of the CUDA backends.

The CPU is refused where a GPU was requested.  ONNX Runtime silently uses it for a whole session when CUDA's libraries
are missing, and for single nodes.  Shape arithmetic belongs there, so ``session.disable_cpu_ep_fallback``, which has no
exceptions, is of no use.  Not run on a device; on a machine without one, the refusals are those of the package with
CUDA.
"""

import contextlib
import ctypes
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from mmgen.runtime.backends.cuda import Device, open_device
from mmgen.runtime.backends.cuda_block import CudaBlock
from mmgen.runtime.backends.memory import Slot
from mmgen.runtime.backends.ort.importing import import_onnxruntime
from mmgen.runtime.backends.ort.session import check_session, explained, failed
from mmgen.runtime.backends.protocol import Backend, Block, Call, Runner
from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.graph_file import graph_content
from mmgen.runtime.storage.schema import Bundle, Role

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
HEAVY = {"MatMul", "Gemm", "Conv", "ConvTranspose"}  # operators that a GPU is for; shape arithmetic uses none of them
PACKAGE = "pip uninstall onnxruntime, then pip install onnxruntime-gpu: only one of them can be there"
LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]', or install the CUDA and cuDNN that it was made for"
# A model of one Identity: a session with it shows whether CUDA works before anything large is loaded.
PROBE = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a0808011204"
    "0a02080142040a001012"
)


class OrtCudaRunner:
    """A graph as an inference session."""

    def __init__(self, device: Device, session: Any, role: Role) -> None:
        self._device, self._session, self._role = device, session, role
        self._inputs = [i.name for i in session.get_inputs()]
        self._outputs = [o.name for o in session.get_outputs()]

    def bind(self, block: Block, calls: Sequence[Mapping[str, Slot]]) -> list[Call]:
        return [self._bind(cast(CudaBlock, block), tensors) for tensors in calls]

    def close(self) -> None:
        self._session = None

    def _bind(self, block: CudaBlock, tensors: Mapping[str, Slot]) -> Call:
        binding, device = self._session.io_binding(), self._device
        for names, bind in ((self._inputs, binding.bind_input), (self._outputs, binding.bind_output)):
            for name in names:
                slot = tensors[name]
                bind(name, "cuda", device.index, np.dtype(slot.dtype).type, slot.shape, block.address(slot))

        def call() -> None:
            if self._session is None:
                raise MmgenError("this graph is closed", remedy="load the bundle again")
            device.use()
            try:
                self._session.run_with_iobinding(binding)  # it waits until the graph is done
            except Exception as error:  # ONNX Runtime's errors share no base class of their own
                what = f"graph {self._role} failed in ONNX Runtime"
                raise failed(what, error, "see what else uses the GPU") from error

        return call


class OrtCuda:
    """Sessions on one stream of a GPU."""

    name = "ort-cuda"

    def __init__(self, onnxruntime: Any, device: Device) -> None:
        self._onnxruntime, self.device = onnxruntime, device

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        return CudaBlock(self.device, host_bytes, other_bytes)

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        graph = bundle.graphs[role]
        path, content = bundle.path(graph.file), graph_content(bundle, role)
        remedy = "free GPU memory, or use --backend ort-cpu"
        with explained(f"{path}: ONNX Runtime can't load it on the GPU", remedy), as_text(path) as readable:
            session = self.session(content, str(readable.parent))
        refuse_cpu(session, str(path))
        check_session(session, role, graph)
        return OrtCudaRunner(self.device, session, role)

    def record(self, calls: Sequence[Call]) -> Call | None:
        """Return None: ONNX Runtime waits after each call."""
        return None

    def wait(self) -> None:
        self.device.wait()

    def close(self) -> None:
        self.device.close()

    def session(self, graph: bytes, weights: str | None = None) -> Any:
        """Open a session on the GPU, for a model whose weights are in a folder.

        Raises:
            MmgenError: ONNX Runtime used the CPU instead.
            Exception: one of ONNX Runtime's own.
        """
        options = self._onnxruntime.SessionOptions()
        options.log_severity_level = 4  # its warnings are about things done on purpose
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if weights is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", weights)
        cuda = {
            "device_id": str(self.device.index),
            "user_compute_stream": str(self.device.stream),  # copies and kernels in one order
            "use_tf32": "0",  # what a bundle keeps in float32 needs the precision
        }
        self.device.use()
        session = self._onnxruntime.InferenceSession(
            graph,
            options,
            providers=[(CUDA, cuda), CPU],
            enable_fallback=0,  # which would print it to stdout and use the CPU
        )
        if (got := session.get_providers()[0]) != CUDA:
            raise MmgenError("ONNX Runtime can't use the GPU", got=got, wanted=CUDA, remedy=LIBRARIES)
        return session


def open_backend(name: str = "ort-cuda", bundle: object = None, threads: object = None) -> Backend:
    """Open ONNX Runtime on the GPU.

    Raises:
        MmgenError: no device, ONNX Runtime isn't installed or has no CUDA, or CUDA's libraries are missing.
    """
    device = open_device()
    try:
        backend = OrtCuda(find_onnxruntime(), device)
        with explained("ONNX Runtime can't use the GPU", LIBRARIES):
            backend.session(PROBE)
    except BaseException:
        device.close()
        raise
    return backend


def find_onnxruntime() -> Any:
    """Import ONNX Runtime, and check that it has CUDA.

    Raises:
        MmgenError: it isn't installed, was made without CUDA, or a library of CUDA's is missing.
    """
    try:
        onnxruntime = import_onnxruntime()
    except (ImportError, OSError, MemoryError) as error:
        raise unloaded("ONNX Runtime", error, extra("ort-cuda")) from error
    if CUDA not in onnxruntime.get_available_providers():
        raise MmgenError(f"this ONNX Runtime, {onnxruntime.__version__}, was made without CUDA", remedy=PACKAGE)
    package = Path(onnxruntime.__file__).parent
    if missing_library(package) and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it doesn't find
            onnxruntime.preload_dlls()  # of Python packages
    if missing := missing_library(package):
        raise MmgenError(f"ONNX Runtime can't use the GPU ({missing})", remedy=LIBRARIES)
    return onnxruntime


def refuse_cpu(session: Any, what: str) -> None:
    """Check that no heavy node of a session runs on the CPU, where ONNX Runtime can tell (from 1.24).

    Raises:
        MmgenError: some do; names them.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return
    parts = session.get_provider_graph_assignment_info()
    nodes = Counter(node.op_type for part in parts if part.ep_name == CPU for node in part.get_nodes())
    if heavy := {kind: count for kind, count in nodes.items() if kind in HEAVY}:
        got = ", ".join(f"{count} {kind}" for kind, count in sorted(heavy.items()))
        raise MmgenError(f"{what}: ONNX Runtime runs nodes on the CPU", got=got, remedy="update onnxruntime-gpu")


def missing_library(package: Path) -> str:
    """Return the loader's message about a library that ONNX Runtime's CUDA part needs and doesn't find, or ""."""
    provider = package / "capi" / "libonnxruntime_providers_cuda.so"
    if provider.is_file():
        try:
            ctypes.CDLL(str(provider))
        except OSError as error:  # also for symbols that another part of ONNX Runtime has; they are loaded later
            return str(error) if "cannot open shared object file" in str(error) else ""
    return ""
