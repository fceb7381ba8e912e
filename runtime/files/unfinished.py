"""Names for what isn't finished yet, and what processes that were killed have left of it.

``.NAME.PID.RANDOM.partial`` lies beside NAME, which it is to become, and ``.old`` what it replaces.  Nobody can guess
such a name and put a link there first; by the number whoever comes next sees whether its process is still at work.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Kind = Literal["partial", "old"]

LABEL = r"\d+(?:\.[0-9a-f]{16})?\.(?:partial|old)"  # behind the name
_writing: set[Path] = set()  # of this process


def beside(path: Path, kind: Kind) -> Path:
    """A new name beside ``path``; this process has to rename or delete what it puts there."""
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(8).hex()}.{kind}")


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A new name beside ``path``, for what becomes it; as long as the block lasts, that is no leftover."""
    partial = beside(path, "partial")
    _writing.add(partial)
    try:
        yield partial
    finally:
        _writing.discard(partial)


def leftovers(path: Path, is_kind: Callable[[int], bool] = stat.S_ISDIR) -> list[tuple[Path, int, str]]:
    """What is being written to become ``path``, or was: where it lies, its process, and ``partial`` or ``old``.

    Links are none, and neither is what somebody else has put there, unless the folder is theirs.

    Args:
        path: need not be there.
        is_kind: whether a file's mode is that of what is looked for; folders unless given.
    """
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)(?:\.[0-9a-f]{{16}})?\.(partial|old)")
    try:
        owners = {path.parent.stat().st_uid, *([os.geteuid()] if os.name == "posix" else ())}
        with os.scandir(path.parent) as entries:
            found = [(entry, match) for entry in entries if (match := name.fullmatch(entry.name))]
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # or a folder that can be written and not be read
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
    """Whether somebody still works on what lies at ``path``, as ``leftovers`` gives it."""
    if pid == os.getpid():  # in containers, also of the one before
        return path in _writing
    if os.name != "posix":  # there, asking with signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no process has such a number
        return False
    except PermissionError:  # somebody else's
        return True
    return True
