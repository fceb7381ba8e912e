"""TensorRT and TensorRT for RTX: a bundle's engines, played on a GPU.

Simulated, not run on a device: the calls are those of the real bindings, and a stand-in executes them on the host.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.cuda_block import CudaBlock
from mmgen.runtime.backends.protocol import Backend, Block, Call, Runner
from mmgen.runtime.backends.tensorrt.engine import EngineCall, EngineRunner, Scratch, Shared
from mmgen.runtime.backends.tensorrt.library import TITLES, find_library, make_logger, place
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store
from mmgen.runtime.builds.engine_build import Build, Flavour, require_buildable
from mmgen.runtime.storage.schema import Bundle, Role

log = logging.getLogger("mmgen")


class TensorRT:
    """Engines of one build on one stream."""

    def __init__(self, flavour: Flavour, shared: Shared, runtime: Any, folder: Path, build: Build) -> None:
        self.name: str = flavour
        self.device, self._shared, self._runtime = shared.device, shared, runtime
        self._folder, self._build = folder, build
        self._runners: list[EngineRunner] = []
        self._complained = False

    def block(self, host_bytes: int, other_bytes: int) -> Block:
        return CudaBlock(self.device, host_bytes, other_bytes)

    def runner(self, bundle: Bundle, role: Role) -> Runner:
        engine = self._build.engines[role]
        content = engine_store.engine_bytes(self._folder, engine)
        runner = EngineRunner(self._shared, self._runtime, bundle, role, self._folder / engine.file, content)
        self._runners.append(runner)
        return runner

    def record(self, calls: Sequence[Call]) -> Call | None:
        try:
            return self._record(calls)
        except Exception as error:  # whatever it is, generating works without
            log.log(
                logging.DEBUG if self._complained else logging.WARNING,
                "the loop can't be recorded as a CUDA graph, so it is enqueued evaluation by evaluation: %s",
                str(error),  # not the error: a stored log record would keep what its traceback refers to
            )
            self._complained = True
            return None

    def wait(self) -> None:
        self.device.wait()

    def close(self) -> None:
        while self._runners:
            self._runners.pop().close()
        self._runtime = None
        self.device.close()

    def _record(self, calls: Sequence[Call]) -> Call:
        first = {call.context: call for call in reversed(calls) if isinstance(call, EngineCall)}
        pinned = [bound.pin() for bound in first]
        for call in first.values():  # what a context postpones to its first run can't be recorded
            call()
        self.device.wait()
        for context in pinned:
            if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(self.device.stream):
                raise MmgenError("TensorRT for RTX says that its stream can't be captured")
        recorded = self.device.record(calls)
        for runner in self._runners:  # now, since programs on devices are often ended by switching off the power
            runner.save()
        return recorded


def open_backend(name: Flavour, bundle: Bundle, threads: object = None) -> Backend:
    """Open TensorRT or TensorRT for RTX on the engines of a bundle that fit this device.

    Raises:
        MmgenError: a bundle for CPUs alone; no device, no library, or no engines for both, with the command that builds
            them.
    """
    require_buildable(bundle)
    device = open_device()  # before any call of TensorRT, which crashes without one
    try:
        library = find_library(name)
        folder, build = engine_store.find(bundle, place(name, library, device))
        logger = make_logger(library)
        logger.errors.clear()
        try:
            runtime = library.Runtime(logger)
        except Exception as error:  # a TypeError, where TensorRT returns none
            said = "; ".join(logger.errors) or error
            raise MmgenError(f"{TITLES[name]} doesn't start ({said})", remedy="mmgen doctor tells more") from error
        shared = Shared(library, logger, device, Scratch(device))
    except BaseException:
        device.close()
        raise
    return TensorRT(name, shared, runtime, folder, build)
