"""Outputs of a model exported at once, in processes: most of an export is Python, which keeps one core busy."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mmgen.export.base.model import Model
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.base.progress import Report
from mmgen.runtime.storage.schema import Bundle

ExportOutput = Callable[[Model, str, Path, Report], Bundle]  # a model's output of this name, to a folder


@dataclass(frozen=True)
class Jobs:
    """How many outputs are exported at once.

    Attributes:
        count: processes, each of which takes the memory of an export.
        again: a function, which can be pickled, that makes the same model in another process.
    """

    count: int
    again: Callable[[], Model]


@dataclass(frozen=True)
class _Worker:
    """A process, and the connection to it."""

    process: BaseProcess
    link: Connection


def in_processes(
    jobs: Jobs, names: Sequence[str], export_output: ExportOutput, folder: Path, report: Report
) -> dict[str, Bundle]:
    """Export outputs of a model at once, each into a folder of its name.

    Args:
        jobs: how many, and how a process gets the model.
        names: of the outputs, in the order in which they are begun.
        export_output: exports one of them; can be pickled.
        folder: holds their folders.
        report: called with what is done and the share of all work that is done.

    Raises:
        MmgenError: of the first output that fails, or a process was ended; then all are.
    """
    shares, made = dict.fromkeys(names, 0.0), dict[str, Bundle]()
    waiting = iter(names)
    with contextlib.ExitStack() as ending:
        begun = list(itertools.islice(waiting, jobs.count))
        workers = [ending.enter_context(_process(jobs, export_output, folder)) for _ in begun]
        busy = dict(zip(workers, begun, strict=True))
        for worker, name in busy.items():
            _ask(worker, name)
        while busy:
            ready = wait([worker.link for worker in busy])
            for worker in [each for each in busy if each.link in ready]:
                name = busy[worker]
                match _received(worker, name):
                    case str(warning):
                        warnings.warn(warning, stacklevel=2)
                    case (stage, done):
                        shares[name] = done
                        report(f"{name}: {stage}", sum(shares.values()) / len(names))
                    case Bundle() as bundle:
                        made[name] = bundle
                        if following := next(waiting, None):
                            _ask(worker, following)
                            busy[worker] = following
                        else:
                            del busy[worker]
    return {name: made[name] for name in names}


def _ask(worker: _Worker, name: str) -> None:
    """Have a process export an output; that it was ended is seen when nothing is received."""
    with contextlib.suppress(OSError):
        worker.link.send(name)


def _received(worker: _Worker, name: str) -> Any:
    """Return what a process says; what it raised is raised."""
    try:
        message = worker.link.recv()
    except (EOFError, OSError):
        worker.process.join()  # nobody holds the other end, so it has ended or is about to
        how = worker.process.exitcode
        what = f"output {name}: the process that exports it was ended"
        if how == -signal.SIGKILL:
            raise MmgenError(
                f"{what}, most likely because memory ran out", remedy="export fewer at once: --jobs 1"
            ) from None
        remedy = "read what it printed, or export without --jobs to see the error"
        raise MmgenError(f"{what} by itself, with code {how}", remedy=remedy) from None
    if isinstance(message, BaseException):
        raise message
    return message


@contextlib.contextmanager
def _process(jobs: Jobs, export_output: ExportOutput, folder: Path) -> Iterator[_Worker]:
    """Start a process, which ends with the context."""
    context = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, jobs, export_output, folder), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Worker(process, ours)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _serve(link: Connection, jobs: Jobs, export_output: ExportOutput, folder: Path) -> None:
    """Export the outputs whose names come, until this process is ended; its parent gets Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(max(1, torch.get_num_threads() // jobs.count))  # more would wait for each other
    warnings.showwarning = lambda message, *_, **__: link.send(str(message))
    try:
        model = None
        while name := link.recv():  # first: of a socket that is closed with something unread, nothing more is received
            model = model or jobs.again()
            link.send(export_output(model, name, folder / name, lambda *progress: link.send(progress)))
    except (EOFError, BrokenPipeError):  # the parent is gone
        os._exit(1)
    except BaseException as error:
        try:
            link.send(error)
        except Exception:  # of a class that can't be sent
            link.send(RuntimeError("".join(traceback.format_exception(error))))
