"""What a forked process inherits and must never destroy: threads and devices behind it are its parent's.

A fork copies memory and one thread.  A destructor that joins the threads of a session, or frees memory of a GPU, waits
in the child for ever or crashes it.  So nothing of it is destroyed there: the system takes everything back when the
process ends.
"""

import functools
import os
import weakref

from mmgen.runtime.base.errors import MmgenError

_users: dict[str, int] = {}  # the first process that used a library, by its name; a fork copies this


def check_elsewhere(process: int) -> None:
    """Check that a generator is used in the process that it was loaded in.

    Raises:
        MmgenError: it isn't.
    """
    if os.getpid() != process:
        raise MmgenError(
            "this generator was loaded in another process", remedy="load the bundle in the process that uses it"
        )


def check_forked(library: str) -> None:
    """Check that this process can use a library whose threads, or whose device, a fork doesn't copy.

    Raises:
        MmgenError: it was forked from a process that used it.
    """
    if _users.get(library, os.getpid()) != os.getpid():
        raise MmgenError(
            f"{library} can't be used in a process that was forked from one that used it",
            remedy="start the process with multiprocessing's method spawn, or before the other one loads a bundle",
        )


def claim(library: str) -> None:
    """Check the same, and record that this process uses the library."""
    check_forked(library)
    _users[library] = os.getpid()


def keep_in_children(thing: object) -> None:
    """Keep an object, and everything it refers to, alive to the end of every process forked from this one."""
    _watched().add(thing)


@functools.cache
def _watched() -> "weakref.WeakSet[object]":
    """Return what is kept in children; the first call registers a handler with Python, which can't be undone."""
    import ctypes

    watched: weakref.WeakSet[object] = weakref.WeakSet()

    def keep() -> None:
        for thing in watched:  # an extra reference each, since the interpreter clears all that it knows when it ends
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))

    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=keep)
    return watched
