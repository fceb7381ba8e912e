"""Engines that are bytes: what makes real ones is another matter."""

import hashlib
from pathlib import Path

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


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
