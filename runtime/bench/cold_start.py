"""A cold start: a fresh process, from its start to its first media."""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmgen.runtime.base.children import python
from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.bench.usage import peak_memory
from mmgen.runtime.files.temporary import temporary_place
from mmgen.runtime.generator import load
from mmgen.runtime.request.request import Request, said_of

CODE = "from mmgen.runtime.bench.cold_start import main; main()"


@dataclass(frozen=True)
class Start:
    """Seconds of one cold start, with the bundle's files in the system's cache if they were read before."""

    total: float  # from before the process was made until it told of the media
    process: float  # of it, the interpreter and imports
    load: float  # of it, the bundle's hashes, the backend and the graphs
    first: float  # of it, the first request
    peak_memory: int  # bytes of host memory


def cold_start(folder: Path, backend: str, threads: int | None, request: Request) -> Start:
    """Start a process that makes one request.

    Args:
        folder, backend, threads: as for ``load``.
        request: arrays in it go over as lists.

    Raises:
        MmgenError: it failed, with the last line that it said.
    """
    asked = {"folder": str(folder), "backend": backend, "threads": threads, "output": request.output,
             "request": said_of(request)}  # fmt: skip
    given = json.dumps(asked, default=_as_json)
    with tempfile.TemporaryFile("w+", errors="replace", dir=temporary_place()) as complaints:
        began = time.perf_counter()
        with subprocess.Popen(
            python(CODE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(given)
            process.stdin.close()
            line = process.stdout.readline()
            total = time.perf_counter() - began  # its way out is not counted
        if process.returncode or not line:
            complaints.seek(0)
            last = (complaints.read().strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise MmgenError(f"a fresh process that makes one request failed ({last})")
    told = json.loads(line)
    return Start(total=total, process=total - told["load"] - told["first"], **told)


def _as_json(value: object) -> object:
    """Return a file's name as text, and an array as lists."""
    return os.fspath(value) if isinstance(value, os.PathLike) else np.asarray(value).tolist()


def main() -> None:
    """Read a request on stdin, make it, and print its times in one line; run in the fresh process."""
    asked = json.load(sys.stdin)
    request = Request(**asked.pop("request"))
    began = time.perf_counter()
    with load(**asked) as generator:
        loaded = time.perf_counter()
        generator.generate(request)
        made = time.perf_counter()
        told = {"load": loaded - began, "first": made - loaded, "peak_memory": peak_memory()}
        sys.stdout.write(json.dumps(told) + "\n")
        sys.stdout.flush()
