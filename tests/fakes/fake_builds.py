"""Engines that are bytes: what makes real ones is another matter."""

import hashlib
import subprocess
import sys
from pathlib import Path

from tree import PYTHON_PATH

from mmgen.engines import cache
from mmgen.runtime.builds.engine_build import Build, EngineFile, GraphReport, Identity, Options, Place
from mmgen.runtime.storage.schema import Axis, Bundle

ORIN = Place("tensorrt", "10.3.0.30", ("sm87",), "linux aarch64", "12.6", "Orin", 16, 15)
RTX = Place("tensorrt-rtx", "1.7.1.116", ("sm86", "sm89"))
HERE = Place("tensorrt-rtx", "1.7.1.116", ("sm89",))  # a device
OPTIONS = Options(({"B": Axis(1, 1, 8)},))
REPORT = GraphReport(12, 9, 2, 1000, 10, ("x",), 1.5, 2**30)


def identity(bundle: Bundle, place: Place = ORIN, options: Options = OPTIONS) -> Identity:
    return Identity(cache.graph_hashes(bundle), place, options)


def fill(folder: Path, wanted: Identity, created: str = "2026-01-01T00:00:00+00:00") -> Build:
    """Engines of a kind, and their sidecar."""
    engines = {}
    for role in wanted.graphs:
        content = f"engine of {role} for {wanted.place}".encode() * 10
        (folder / f"{role}.engine").write_bytes(content)
        engines[role] = EngineFile(f"{role}.engine", hashlib.sha256(content).hexdigest(), len(content), REPORT)
    build = Build(wanted, engines, created)
    cache.publish(folder, build)
    return build


def make(bundle: Bundle, wanted: Identity, created: str = "2026-01-01T00:00:00+00:00") -> Path:
    """The same in their place in the bundle."""
    with cache.building(bundle, wanted) as folder:
        fill(folder, wanted, created)
    return cache.folder_of(bundle, wanted)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


CHILD = """
import os, sys, time
sys.path[:0] = sys.argv[1].split(os.pathsep)
from pathlib import Path
from mmgen.engines import cache
from mmgen.runtime.files import folders
from mmgen.runtime.storage.bundle import read_bundle
from fake_builds import fill, identity
bundle = read_bundle(sys.argv[2])
wanted = identity(bundle)
def stop(at):
    print(at, flush=True)
    time.sleep(60)
if sys.argv[3] == "between the renames":
    folders.exchange = lambda one, other: False  # as where the system can't
    rename = Path.rename
    def renamed(self, target):
        if str(self).endswith(".partial"):
            stop("between the renames")
        return rename(self, target)
    Path.rename = renamed
with cache.building(bundle, wanted, lambda stage, _: print(stage, flush=True)) as folder:
    if cache.find(bundle, wanted):
        print("found", flush=True)
    else:
        (folder / "step.engine").write_bytes(b"half an eng")
        if sys.argv[3] == "in the build":
            stop("in the build")
        fill(folder, wanted)
        if sys.argv[3] == "before the end":
            stop("before the end")
        if sys.argv[3] == "slowly":
            print("building", flush=True)
            sys.stdin.readline()
print("done", flush=True)
"""


def child(bundle: Bundle, how: str) -> "subprocess.Popen[str]":
    """A builder in a process of its own, which tells how far it is and stops where it is asked to."""
    command = [sys.executable, "-W", "ignore", "-c", CHILD, PYTHON_PATH, str(bundle.folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    """Its next line."""
    assert process.stdout is not None
    return process.stdout.readline().strip()
