"""What a command writes, and whom it calls, with all processes that it starts.

Where strace is installed every system call is seen.  Elsewhere an audit hook sees what Python does, and what libraries
write is found in the folders where they would: the user's home and the one for temporary files.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STRACE = ("strace", "-f", "-qq", "--seccomp-bpf")  # stops for nothing else than what is looked at
NO_STRACE = "strace can't be had here, so what libraries send is not seen"
WRITE = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
SEND = "connect,sendto,sendmsg,sendmmsg"
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")  # of the environment; all else could change what is done
HOOK = """
import os, sys
NEW = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}  # where the path is that is made
CALLS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname"}
TOLD = os.open(os.environ["MMGEN_TOLD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def watch(event, given):
    if event in NEW or event == "open" and given[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = given[NEW.get(event, 0)]
        if not isinstance(path, int):
            os.write(TOLD, f"write {os.path.abspath(os.fsdecode(path))}\\n".encode())
    elif event in CALLS:
        os.write(TOLD, f"call {given}\\n".encode())
os.write(TOLD, b"here\\n")
sys.addaudithook(watch)
"""


@dataclass(frozen=True)
class Seen:
    """What happened that nobody asked for."""

    written: frozenset[str]  # paths outside the folder that was named
    left: frozenset[str]  # files and folders that are still there, in the home and among the temporary ones
    called: frozenset[str]  # what went to sockets of the internet, or asked for names there


def watch(command: Sequence[str], scratch: Path, named: Path) -> Seen:
    """Run a command that must go well.

    Args:
        command: its words.
        scratch: a new folder for a home, temporary files and what the watching needs.
        named: the folder in which the command is run and told to write.
    """
    home, temporary, site, told, trace = (scratch / name for name in ("home", "tmp", "site", "told", "trace"))
    for folder in (home, temporary, site):
        folder.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(HOOK)
    environment = {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(site), "MMGEN_TOLD": str(told),
        "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    calls = ",".join(f"?{call}" for call in f"{WRITE},{SEND}".split(","))  # ?: not every processor's Linux has it
    tracer = [*STRACE, "-y", "-e", f"trace={calls}", "-o", str(trace)] if has_strace() else []
    ran = subprocess.run([*tracer, *command], env=environment, cwd=named, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = told.read_text().splitlines()
    assert "here" in lines, "the hook isn't there"
    written = {line.removeprefix("write ") for line in lines if line.startswith("write ")}
    called = {line for line in lines if line.startswith("call ") and "AF_UNIX" not in line}
    if has_strace():
        traced = trace.read_text(errors="replace").splitlines()
        written |= {path for line in traced for path in _written(line, named)}
        called |= {line for line in traced if re.search(rf"({SEND.replace(',', '|')})\(.*AF_INET6?\b", line)}
    known = tuple(map(str, (named, temporary, told, trace, "/dev/", "/proc/")))  # temporary files are to go away again
    left = (str(path) for folder in (home, temporary) for path in folder.rglob("*"))
    return Seen(frozenset(path for path in written if not path.startswith(known)), frozenset(left), frozenset(called))


@functools.cache
def has_strace() -> bool:
    """Whether system calls can be traced; a container may forbid it."""
    return bool(shutil.which("strace")) and subprocess.run([*STRACE, "-o", os.devnull, "true"]).returncode == 0


def mmgen(*arguments: object) -> list[str]:
    """Return the command ``mmgen`` of this environment."""
    return [sys.executable, "-c", "from mmgen.runtime.cli.main import main; main()", *map(str, arguments)]


def _written(line: str, folder: Path) -> list[str]:
    """Paths that a line of strace made or opened to write."""
    if " = -1 " in line or not re.search(rf"\b({WRITE.replace(',', '|')})\(", line):
        return []
    if re.search(r"\bopen(at)?\(", line):
        if not re.search(r"O_WRONLY|O_RDWR|O_CREAT", line):
            return []
        if found := re.findall(r" = \d+<(.*)>$", line):
            return list(found)
    return [str(folder / path) for path in re.findall(r'"(.*?)"', line)[-1:]]
