"""What a forked process inherits and must never destroy: threads and devices behind it are its parent's.

A fork copies memory and one thread.  A destructor that joins the threads of a session, or frees memory of a GPU, waits
in the child for ever or brings it down.  So nothing of it is destroyed there: the system takes all of it back at once
when the process ends.
"""

import functools
import os
import weakref

from mmgen.runtime.base.errors import MmgenError

_users: dict[str, int] = {}  # the first process that used a library, by its name; a fork copies this


def check_elsewhere(process: int) -> None:
    """See that a generator is used in the process that it was loaded in.

    Raises:
        MmgenError: it isn't.
    """
    if os.getpid() != process:
        raise MmgenError(
            "this generator was loaded in another process", remedy="load the bundle in the process that uses it"
        )


def check_forked(library: str) -> None:
    """See that this process can use a library whose threads, or whose device, a fork doesn't copy.

    Raises:
        MmgenError: it was forked from a process that used it.
    """
    if _users.get(library, os.getpid()) != os.getpid():
        raise MmgenError(
            f"{library} can't be used in a process that was forked from one that used it",
            remedy="start the process with multiprocessing's method spawn, or before the other one loads a bundle",
        )


def claim(library: str) -> None:
    """The same, and take down that this process uses it."""
    check_forked(library)
    _users[library] = os.getpid()


def keep_in_children(thing: object) -> None:
    """Have an object, and all that it refers to, live to the end of every process that is forked from this one."""
    _watched().add(thing)


@functools.cache
def _watched() -> "weakref.WeakSet[object]":
    """What is kept in children.  Python is told so when there is something to keep; it can't be told to stop."""
    import ctypes

    watched: weakref.WeakSet[object] = weakref.WeakSet()

    def keep() -> None:
        for thing in watched:  # one reference too many, for the interpreter clears all that it knows when it ends
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))

    if hasattr(os, "register_at_fork"):  # Windows knows no fork
        os.register_at_fork(after_in_child=keep)
    return watched
