"""Work that is killed before its N-th call to the file system, for every N."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

CHANGES = {"os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "ctypes.dlsym"}


def at_every_call(work: Callable[[], object], prepare: Callable[[], object], most: int = 300) -> Iterator[int]:
    """Run work again and again, each time killed one call later; yields after each time, and once when it was done.

    Args:
        work: what runs in a process of its own.
        prepare: puts back what was there before.
        most: calls that it may make.
    """
    for number in range(1, most):
        prepare()
        done = _killed_at(number, work)
        yield number
        if done:
            return
    raise AssertionError(f"more than {most} calls")


def _killed_at(number: int, work: Callable[[], object]) -> bool:
    """Whether the work was done before the call at which it would have been killed."""
    child = os.fork()
    if child == 0:
        left = number

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the work failed"
    return True
