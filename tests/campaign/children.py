"""What a child process made of something that may be wrong: an answer, one clear error, or what must never be."""

import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmgen.runtime.base.errors import MmgenError

MEMORY = 4 << 30  # bytes of addresses that a child may have beyond its parent's
SECONDS = 20.0  # that it may take
LENGTH = 600  # characters that an error may have


@dataclass(frozen=True)
class Outcome:
    """How a child ended."""

    kind: str  # played, refused, or wrong
    said: str  # what it answered, or what is wrong

    @property
    def is_right(self) -> bool:
        return self.kind != "wrong"


def attempt(work: Callable[[], str]) -> Outcome:
    """Do something in a child of this process, which has imported all that is needed.

    Right is an answer, or one error of ours in one line of bearable length; wrong are all other exceptions, signals,
    more memory and more time than anything here needs.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _limit()
        os.write(writer, _result(work).encode("utf-8", "backslashreplace")[:2000])
        os._exit(0)
    os.close(writer)
    try:
        return _outcome(child, reader)
    finally:
        os.close(reader)


def _outcome(child: int, reader: int) -> Outcome:
    deadline = time.monotonic() + SECONDS
    said = b""
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(reader, 4096)
        if not piece:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            kind, _, text = said.decode().partition(":")
            return Outcome(kind, text) if status == 0 and kind else Outcome("wrong", _ended(status))
        said += piece
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return Outcome("wrong", f"no answer in {SECONDS:g} s")


def _ended(status: int) -> str:
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"


def _limit() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # libraries write there before they give up
        os.dup2(nowhere, stream)


def _result(work: Callable[[], str]) -> str:
    try:
        return f"played:{work()}"
    except MmgenError as error:
        text = str(error)
        if "\n" in text or len(text) > LENGTH or not text.isprintable():
            return f"wrong:an error of {len(text)} characters: {text[:300]!r}"
        return f"refused:{text}"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        what = " ".join(str(error).split())[:200]
        return f"wrong:{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {what}"
