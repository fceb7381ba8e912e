"""Python processes started by mmgen: they import nothing from the folder in which they are started."""

import sys


def python(code: str) -> list[str]:
    """Return the command that runs code in this environment's Python.

    Python looks for modules in the working folder first, where a ``numpy.py`` may lie.
    """
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-c", code]
    return [sys.executable, "-c", f"import sys; del sys.path[0]\n{code}"]
