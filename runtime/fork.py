"""What a forked process inherits and must never destroy: threads and devices behind it are its parent's.

A fork copies memory and one thread.  A destructor that joins the threads of a session, or frees memory of a GPU, waits
in the child for ever or brings it down.  So nothing of it is destroyed there: the system takes all of it back at once
when the process ends.
"""

import functools
import os
import weakref

ELSEWHERE = "this generator was loaded in another process"
REMEDY = "load the bundle in the process that uses it"


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
