"""The compiler's process with another compiler in it."""

import sys
from collections.abc import Callable

from mmgen.engines.compile import Job
from mmgen.engines.worker import compile_apart
from mmgen.runtime.builds.engine_build import GraphReport

REPORT = GraphReport(10, 8, 2, 1000, 24, ("next_state",), 1.5, 1 << 20)


def worker(body: str) -> list[str]:
    """Return the real worker's command, with another compiler in it: ``body`` is what it does with (job, say)."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    script = f"""
import os, signal, sys, time, logging
from pathlib import Path
from mmgen.engines import worker
from mmgen.runtime.builds.engine_build import GraphReport
from mmgen.runtime.base.errors import MmgenError
def compiler(job, say):
{lines}
    return GraphReport(10, 8, 2, 1000, 24, ("next_state",), 1.5, 1 << 20)
worker._compile = compiler
worker.main()
"""
    return [sys.executable, "-c", script]


def compiled(job: Job, body: str, report: Callable[[float], None] = lambda fraction: None) -> GraphReport:
    return compile_apart(job, report, expected=3 << 30, command=worker(body))
