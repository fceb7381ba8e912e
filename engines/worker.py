"""The compiler in a process of its own, one graph each: whatever happens to it, the calling program lives on.

A job goes in as a line of JSON on stdin, which stays open: its end means that the parent is gone.  Out come lines of
JSON on what was stdout; there, native libraries print to stderr instead.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import IO, Any, NoReturn

from mmgen.engines import memory
from mmgen.engines.compile import Events, Job, compile_graph
from mmgen.runtime.backends.cuda import open_device
from mmgen.runtime.backends.tensorrt.library import find_library, make_logger
from mmgen.runtime.base.children import python
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import GraphReport
from mmgen.runtime.files.folders import size_text
from mmgen.runtime.files.json_records import from_json, to_json

log = logging.getLogger("mmgen.tensorrt")
log.addHandler(logging.NullHandler())  # for programs that add one; what a user needs of the logs is in the errors
LAST = 3  # log lines that an error quotes
COMMAND = tuple(python("from mmgen.engines.worker import main; main()"))


def compile_apart(
    job: Job, report: Callable[[float], None], *, expected: int, command: Sequence[str] = COMMAND
) -> GraphReport:
    """Compile a graph in a worker and wait for it.

    The worker ends at once when this is left, by Ctrl-C too, and when this process dies.

    Args:
        job: its files by absolute paths.
        report: called with the share that is done.
        expected: bytes of memory that it should take, for the error if it is killed.
        command: what to run.

    Raises:
        MmgenError: the job failed, or the worker can't be started or died; says how, with the last lines it logged.
    """
    free = memory.free_bytes()
    home = Path(job.engine).parent  # where a library may leave files
    with (
        tempfile.TemporaryFile(dir=home) as printed,  # it can be written, if no other folder can
        _started(job, command, printed, home) as worker,
    ):
        try:
            outcome = _listen(worker, job, report)
        except BaseException:
            worker.kill()
            raise
        if isinstance(outcome, GraphReport):
            worker.kill()  # what is left is to free memory
            return outcome
        status = worker.wait()
        raise _death(job, status, [*_tail(printed), *outcome][-LAST:], expected, free)


def _started(job: Job, command: Sequence[str], printed: IO[bytes], home: Path) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, cwd=home)
    except OSError as error:
        what = f"graph {job.role}: the compiler can't be started ({error.strerror})"
        raise MmgenError(what, remedy="mmgen doctor shows what is installed") from error


def _listen(worker: "subprocess.Popen[bytes]", job: Job, report: Callable[[float], None]) -> GraphReport | list[str]:
    """Return the worker's report or, if it ended without one, the last lines it logged."""
    assert worker.stdin is not None and worker.stdout is not None
    lines: deque[str] = deque(maxlen=LAST)
    try:
        worker.stdin.write(json.dumps({"job": to_json(job), "level": log.getEffectiveLevel()}).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return []  # it could not even start
    for line in worker.stdout:
        match _message(line):
            case {"fraction": float(fraction)}:
                report(fraction)
            case {"log": [int(level), str(text)]}:
                log.log(level, "%s", text)
                lines.append(text)
            case {"warning": str(text)}:
                warnings.warn(text, stacklevel=4)
            case {"error": {"what": str(what), "got": got, "wanted": wanted, "remedy": remedy}}:
                raise MmgenError(what, got=got, wanted=wanted, remedy=remedy)
            case {"report": record}:
                return from_json(GraphReport, record, "the worker's report")
            case _:  # something that was printed before the worker could prevent it
                lines.append(line.decode(errors="replace").strip())
    return list(lines)


def _message(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _tail(printed: IO[bytes]) -> list[str]:
    """Return the last lines of what the worker and its libraries printed."""
    size = printed.seek(0, os.SEEK_END)
    printed.seek(max(0, size - 4096))
    lines = printed.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _death(job: Job, status: int, lines: list[str], expected: int, free: int | None) -> MmgenError:
    quoted = textwrap.shorten(" / ".join(lines), 600, placeholder=" ...")
    last = f"; its last output: {quoted}" if quoted else ""
    if status >= 0:
        return MmgenError(
            f"graph {job.role}: the compiler ended with status {status}{last}",
            remedy="mmgen doctor shows what is installed",
        )
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    if name != "SIGKILL":
        return MmgenError(
            f"graph {job.role}: the compiler crashed with {name}{last}",
            remedy="use another version of TensorRT, or another optimization level",
        )
    return MmgenError(
        f"graph {job.role}: the compiler was killed (SIGKILL), most likely because memory ran out{last}",
        got=f"{size_text(free)} free at the start" if free is not None else None,
        wanted=f"about {size_text(expected)}",
        remedy=memory.advice(memory.is_shared()),
    )


def main() -> None:
    """Run the worker: read a job, compile it, report the outcome."""
    say = _channel()
    _end_first()
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _forward_log(say, order["level"])
    job = from_json(Job, order["job"], "job")
    try:
        report = _compile(job, say)
    except MmgenError as error:
        texts = {name: None if (v := getattr(error, name)) is None else str(v) for name in ("got", "wanted", "remedy")}
        say({"error": {"what": error.what, **texts}})
        sys.exit(1)
    say({"report": to_json(report)})


def _compile(job: Job, say: Callable[[object], None]) -> GraphReport:
    events = Events(lambda fraction: say({"fraction": float(fraction)}), lambda text: say({"warning": text}))
    # TensorRT crashes where there is no device; TensorRT for RTX needs none.
    with closing(open_device()) if job.flavour == "tensorrt" else nullcontext():
        library = find_library(job.flavour)
        return compile_graph(library, make_logger(library), job, events)


def _channel() -> Callable[[object], None]:
    """Return a function that writes to the parent alone; what prints to stdout from now on goes to stderr."""
    parent = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    lock = threading.Lock()

    def say(message: object) -> None:
        with lock:
            parent.write(json.dumps(message).encode() + b"\n")

    return say


def _end_first() -> None:
    """Let this process be the one that is killed when memory runs out, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        return  # not Linux, or not allowed: it is optional


def _end_with_parent() -> NoReturn:
    """End this process when its parent is gone, at once: compiling lets other threads run."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _forward_log(say: Callable[[object], None], level: int) -> None:
    class Forward(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say({"log": [record.levelno, record.getMessage()]})

    logger = logging.getLogger("mmgen")
    logger.addHandler(Forward())
    logger.setLevel(level)
    logger.propagate = False
