"""Names for unfinished files and folders, and what killed processes have left of them.

``.NAME.PID.RANDOM.partial`` lies next to NAME, which it is to become, and ``.old`` is what it replaces.  Nobody can
guess such a name and put a link there first; the process number tells later processes whether it is still in use.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Kind = Literal["partial", "old"]

LABEL = r"\d+(?:\.[0-9a-f]{16})?\.(?:partial|old)"  # after the name
_writing: set[Path] = set()  # of this process


def beside(path: Path, kind: Kind) -> Path:
    """Return a new name next to ``path``; this process has to rename or delete what it puts there."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(8).hex()}.{kind}")


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield a new name next to ``path``, for what becomes it; in the block ``alive`` is true of it."""
    partial = beside(path, "partial")
    _writing.add(partial)
    try:
        yield partial
    finally:
        _writing.discard(partial)


def leftovers(path: Path, is_kind: Callable[[int], bool] = stat.S_ISDIR) -> list[tuple[Path, int, str]]:
    """List what is being written to become ``path``, or was: its path, its process, and ``partial`` or ``old``.

    Links don't count, and neither does what other users have put there, unless the folder is theirs.

    Args:
        path: need not exist.
        is_kind: whether a file's mode is that of the kind to list; folders by default.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(?:\.[0-9a-f]{{16}})?\.(partial|old)")
    try:
        owners = {path.parent.stat().st_uid, *([os.geteuid()] if os.name == "posix" else ())}
        with os.scandir(path.parent) as entries:
            found = [(entry, match) for entry in entries if (match := name.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # or a folder that can be written but not read
        return []
    ours = []
    for entry, match in found:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # it was finished meanwhile
            continue
        if is_kind(status.st_mode) and status.st_uid in owners:
            ours.append((path.parent / entry.name, int(match[1]), match[2]))
    return sorted(ours)


def alive(path: Path, pid: int) -> bool:
    """Check whether a process still works on what is at ``path``, as ``leftovers`` lists it."""
    if pid == os.getpid():  # in containers, also that of the one before
        return path in _writing
    if os.name != "posix":  # there, asking with signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return False
    except PermissionError:  # another user's
        return True
    return True
