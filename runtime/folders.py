"""Folders that appear whole or not at all, and a lock for those who make them."""

import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from mmgen.runtime.errors import MmgenError

_writing: set[Path] = set()  # the partial folders of this process


@contextmanager
def whole_folder(
    out: Path,
    *,
    wanted_bytes: int = 0,
    remedy: str = "choose another place",
    check: Callable[[Path], None] = lambda out: None,
    carry: tuple[str, ...] = (),
    alone: bool = False,
) -> Iterator[Path]:
    """A folder to write in, which becomes ``out`` when the block ends well; left empty, it is dropped.

    It is ``.NAME.PID.partial`` beside ``out``.  On an error, Ctrl-C or SIGTERM it goes, and what was at ``out`` stays
    as it was.  What a killed process left behind is cleared away first.

    Args:
        out: nothing, or an older folder.
        wanted_bytes: free space to ask for.
        remedy: what to do about a place that can't be written or is full.
        check: called with ``out`` before any work; raises where ``out`` must not be replaced.
        carry: names in the older folder that go over to the new one, unless it has them too.
        alone: no other process writes ``out`` now, so whatever lies there unfinished is dead.

    Raises:
        MmgenError: the place can't be written, or has too little space.
    """
    out = Path(os.path.realpath(out))  # a link stays a link
    partial, old = (out.with_name(f".{out.name}.{os.getpid()}.{kind}") for kind in ("partial", "old"))
    with _explained(out, remedy), _endable() as end_if_asked:
        recover(out, carry=carry, alone=alone)
        if not out.parent.is_dir():
            raise MmgenError(f"folder {out.parent} is not there", remedy=f"make it, or {remedy}")
        check(out)
        if (free := shutil.disk_usage(out.parent).free) < wanted_bytes:
            got, wanted = size_text(free), size_text(wanted_bytes)
            raise MmgenError(
                f"free space in {out.parent}", got=got, wanted=wanted, remedy=f"make room, or {remedy}"
            )
        try:
            partial.mkdir()
            _writing.add(partial)
            yield partial
            if any(partial.iterdir()):
                _to_disk(partial)
                end_if_asked()
                _swap(partial, out, old, carry)
        finally:
            _writing.discard(partial)
            shutil.rmtree(partial, ignore_errors=True)


def recover(out: Path, *, carry: tuple[str, ...] = (), alone: bool = False) -> None:
    """Put back an older folder that a process set aside and was killed; delete what dead processes left."""
    for path, pid, kind in leftovers(out):
        if not alone and _alive(path, pid):
            continue
        if kind == "partial":
            shutil.rmtree(path, ignore_errors=True)
        elif out.exists():
            _retire(path, out, carry)
        else:
            path.rename(out)


def leftovers(out: Path) -> list[tuple[Path, int, str]]:
    """Folders that are being written to become ``out``, or were: path, process and ``partial`` or ``old``."""
    name = re.compile(rf"\.{re.escape(out.name)}\.(\d+)\.(partial|old)")
    found = sorted(out.parent.iterdir()) if out.parent.is_dir() else ()
    return [(path, int(match[1]), match[2]) for path in found if (match := name.fullmatch(path.name))]


def size_text(count: int) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def lock_of(folder: Path) -> Path:
    """The lock of those who write a folder, beside it."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(path: Path, waiting: Callable[[], None] | None) -> Iterator[Literal["mine", "theirs", "none"]]:
    """Hold a lock that ends with this process; its file is gone afterwards.

    Args:
        path: of the lock's file, in a folder that is there.
        waiting: called when somebody else holds it, before waiting for them; None: don't wait.

    Yields:
        ``mine``; ``theirs`` where somebody else holds it and nobody waits; ``none`` where there are no such locks.
    """
    try:
        import fcntl
    except ImportError:  # not on this system
        yield "none"
        return
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                file.close()
                yield "theirs"
                return
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a network's folder without locks
            file.close()
            path.unlink(missing_ok=True)
            yield "none"
            return
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            break
        file.close()  # the one before took its file away
    try:
        yield "mine"
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _swap(partial: Path, out: Path, old: Path, carry: tuple[str, ...]) -> None:
    """Rename the older folder aside and the new one in; both are on the disk all the time."""
    if not out.exists():
        partial.rename(out)
        return
    out.rename(old)
    try:
        partial.rename(out)
    finally:
        if not out.exists():
            old.rename(out)
    _retire(old, out, carry)


def _retire(old: Path, out: Path, carry: tuple[str, ...]) -> None:
    """Delete the older folder, after what is carried over has left it."""
    for name in carry:
        if (old / name).exists() and not (out / name).exists():
            (old / name).rename(out / name)
    shutil.rmtree(old, ignore_errors=True)


def _to_disk(folder: Path) -> None:
    """Nothing takes its place before it would survive a loss of power."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def _alive(path: Path, pid: int) -> bool:
    if pid == os.getpid():  # in containers, also of the one before
        return path in _writing
    if os.name != "posix":  # there, asking with signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextmanager
def _explained(out: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MmgenError(f"{out} can't be written ({error.strerror or error})", remedy=remedy) from error


@contextmanager
def _endable() -> Iterator[Callable[[], None]]:
    """SIGTERM, like Ctrl-C, ends the block as an exception, so that it cleans up.

    Yields a function that raises the exception again: a library that Python called back from may have swallowed it.
    Only signals that nobody else handles are touched, and only in the main thread.
    """
    asked: list[BaseException] = []

    def again() -> None:
        if asked:
            raise asked[0]

    def leave(number: int, frame: FrameType | None) -> None:
        asked.append(KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number))
        raise asked[-1]

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handled: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
        for number, default in handled.items():
            if signal.getsignal(number) is default:
                before[number] = default
                signal.signal(number, leave)
    try:
        yield again
    finally:
        for number, default in before.items():
            signal.signal(number, default)
