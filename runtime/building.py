"""Building that a caller requested: ``load(..., build=True)``."""

import subprocess
from collections.abc import Callable

from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.registry import log, open_backend
from mmgen.runtime.base.children import python
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import FLAVOURS, require_buildable
from mmgen.runtime.storage.bundle import outputs_of
from mmgen.runtime.storage.schema import Bundle

MMGEN = python("from mmgen.runtime.cli.main import main; main()")  # of this environment


def ensure_built(bundle: Bundle, backend: str) -> None:
    """Build engines for this device unless some fit, or optimise graphs for this processor.

    Args:
        bundle: what to build for; the files are written into its folder.
        backend: ``auto``, which on a machine without a GPU or with a bundle for CPUs does nothing; a TensorRT backend;
            or ``ort-cpu``.  For the others there is nothing to build.

    Raises:
        MmgenError: a TensorRT backend can't be opened here, or the build failed.
    """
    if backend == "ort-cpu":
        run_build([str(bundle.folder), "--target", "cpu"], log.info)
    wanted = [flavour for flavour in FLAVOURS if backend in ("auto", flavour)]
    if not wanted or any(all(_opens(flavour, output) for output in outputs_of(bundle).values()) for flavour in wanted):
        return
    try:
        require_buildable(bundle)
        device = open_device()
    except MmgenError as error:
        if backend != "auto":
            raise
        log.info("no engines were built: %s", error)
        return
    try:
        target = device.compute_capability if backend == "tensorrt-rtx" else "host"
    finally:
        device.close()
    run_build([str(bundle.folder), "--target", target], log.info)


def run_build(arguments: list[str], say: Callable[[str], None]) -> None:
    """Run ``mmgen build`` in a process of its own, so that this one doesn't load the compiler.

    Args:
        arguments: of the command.
        say: called with each line of its progress.

    Raises:
        MmgenError: it failed; the line is the command's own.
    """
    line = "it said nothing"
    command = [*MMGEN, "build", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None
        for text in process.stderr:
            line = text.strip() or line
            say(line)
    if process.returncode != 0:
        raise MmgenError(f"mmgen build failed: {line.removeprefix('Error: ')}")


def _opens(flavour: str, bundle: Bundle) -> bool:
    try:
        open_backend(flavour, bundle).close()
    except MmgenError as error:
        log.info("backend %s: %s", flavour, error)
        return False
    return True
