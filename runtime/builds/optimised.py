"""Graphs that ONNX Runtime has optimised for this processor, kept in ``optimised/KEY/`` for the next start.

``mmgen build BUNDLE --target cpu`` makes them.  Loading one takes less time and hardly any memory: weights have the
type and the order in which they are multiplied, so they are mapped from the file instead of copied.  A folder's name is
a key over everything that its content depends on; its files are compared with their checksums before they are used, and
it is written atomically.  Nothing depends on it: without it, graphs are optimised at each start.
"""

import json
import logging
import platform
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.identity import identity_of_graph, key_of
from mmgen.runtime.files.json_records import from_json, read_json, to_json
from mmgen.runtime.files.links import is_link, own
from mmgen.runtime.storage.bundle import graph_bytes, outputs_of
from mmgen.runtime.storage.hashes import sha256
from mmgen.runtime.storage.schema import Bundle, Role

FOLDER = "optimised"  # in a bundle; as its engines, for one kind of machine
GRAPH, DATA, SIDECAR = "graph.onnx", "graph.onnx.data", "optimised.json"
SCHEMA = 2  # of the sidecar and of the settings with which graphs are written; a change means writing them again
ROOM = 4  # bytes to have free for each byte of a graph: half precision becomes float32, and is stored twice

ELSEWHERE = "copy the bundle to a place that can be written"

log = logging.getLogger("mmgen")


@dataclass(frozen=True)
class Identity:
    """Everything that ONNX Runtime's optimised graph depends on."""

    graph: str  # SHA-256 over the ONNX file and its external data
    onnxruntime: str  # its version
    build: str  # its build information
    processor: str  # the processor's instructions
    schema: int = SCHEMA


@dataclass(frozen=True)
class Optimised:
    """``optimised.json``."""

    identity: Identity
    role: Role
    files: dict[str, tuple[int, int]]  # bytes and CRC-32, by name

    @property
    def bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def find(bundle: Bundle, role: Role, onnxruntime: Any) -> Path | None:
    """Find the optimised graph, an ONNX file, of this graph for this machine; a damaged one is logged and not used.

    Args:
        bundle: as read.
        role: which of its graphs.
        onnxruntime: the module.
    """
    if not bundle.path(FOLDER).is_dir() or bundle.public_key is not None:  # checksums don't prove who made it
        return None
    try:
        folder = _folder(bundle, _identify(bundle, role, onnxruntime))
    except MmgenError as error:
        log.warning("%s, so it isn't used", error.what)
        return None
    if not folder.exists():
        return None
    if wrong := _wrong(folder):
        log.warning("%s, so it isn't used; mmgen build %s --target cpu makes it again", wrong, bundle.folder)
        return None
    return folder / GRAPH


def make(
    bundle: Bundle, role: Role, onnxruntime: Any, optimise: Callable[[Path, str], None], waiting: Callable[[], None]
) -> tuple[Path, bool]:
    """Find or make an optimised graph of this graph for this machine.

    Args:
        bundle, role, onnxruntime: as for ``find``.
        optimise: writes the graph to a path, and its weights to a file of the given name next to it.
        waiting: called when another process is making it, before waiting for it.

    Returns:
        The folder; whether it existed already.

    Raises:
        MmgenError: it can't be written or made, a folder is a link, or a file of the bundle isn't the one in the
            manifest.
    """
    from mmgen.runtime.files.atomic import explained  # not needed to load
    from mmgen.runtime.files.locks import lock_of, locked

    identity = _identify(bundle, role, onnxruntime)
    folder = _folder(bundle, identity)
    with explained(folder.parent, ELSEWHERE):
        folder.parent.mkdir(exist_ok=True)
        with locked(lock_of(folder), waiting) as lock:
            if folder.exists() and not _wrong(folder):
                return folder, True
            _write(bundle, role, identity, folder, optimise, alone=lock == "mine")
    return folder, False


def scan(bundle: Bundle) -> list[tuple[Path, Optimised | MmgenError]]:
    """List every kept graph's folder with its sidecar, or with the reason why it can't be read.

    Raises:
        MmgenError: their folder is a link.
    """
    folder = own(bundle.folder, FOLDER)
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(path, _read(path)) for path in found if re.fullmatch("[0-9a-f]{32}", path.name)]


def stale(bundle: Bundle, folder: Path, version: str | None) -> str | None:
    """Return why a kept graph can no longer be used; None where it can, or is for another processor.

    Args:
        bundle: as read.
        folder: one that ``scan`` found.
        version: of the installed ONNX Runtime; None: there is none, and graphs of any version may be in use elsewhere.
    """
    found = _read(folder)
    if isinstance(found, MmgenError):
        return str(found)
    graphs = (output.graphs.get(found.role) for output in outputs_of(bundle).values())
    if all(not g or identity_of_graph(g.sha256, g.data_sha256) != found.identity.graph for g in graphs):
        return f"made from another {found.role} graph"
    if version and found.identity.processor == processor() and found.identity.onnxruntime != version:
        return f"made by ONNX Runtime {found.identity.onnxruntime}, and {version} is here"
    return _damage(folder, found)


def _identify(bundle: Bundle, role: Role, onnxruntime: Any) -> Identity:
    graph = bundle.graphs[role]
    own = identity_of_graph(graph.sha256, graph.data_sha256)
    return Identity(own, onnxruntime.__version__, onnxruntime.get_build_info(), processor())


def _folder(bundle: Bundle, identity: Identity) -> Path:
    return own(bundle.folder, FOLDER, key_of(identity))


def processor() -> str:
    """Return the processor's instructions, as Linux names them; on other systems its name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return f"{platform.machine()} {platform.processor()}"


def _wrong(folder: Path) -> str | None:
    """Return why a folder can't be used; None where it can."""
    found = _read(folder)
    return str(found) if isinstance(found, MmgenError) else _damage(folder, found)


def _read(folder: Path) -> Optimised | MmgenError:
    sidecar = folder / SIDECAR
    if is_link(folder):
        return MmgenError(f"{folder} is a link")
    try:
        found = from_json(Optimised, read_json(sidecar), str(sidecar))
    except MmgenError as error:
        return MmgenError(error.what, got=error.got, wanted=error.wanted)
    return found if key_of(found.identity) == folder.name else MmgenError(f"{sidecar} is of another graph")


def _damage(folder: Path, found: Optimised) -> str | None:
    """Return what is wrong with the files; comparing checksums costs less than they save."""
    if set(found.files) != {GRAPH, DATA}:
        return f"{folder / SIDECAR} names other files"
    for name, wanted in found.files.items():
        path = folder / name
        try:
            if not path.is_file() or path.stat().st_size != wanted[0] or _checksum(path) != wanted:
                return f"{path} is damaged"
        except OSError as error:
            return f"{path} can't be read ({error.strerror})"
    return None


def _checksum(path: Path) -> tuple[int, int]:
    """Return the bytes and CRC-32 of a file."""
    size, crc, piece = 0, 0, memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            size, crc = size + count, zlib.crc32(piece[:count], crc)
    return size, crc


def _write(
    bundle: Bundle, role: Role, identity: Identity, folder: Path, optimise: Callable[[Path, str], None], alone: bool
) -> None:
    from mmgen.runtime.files.folders import whole_folder

    graph = bundle.graphs[role]
    sources = {bundle.path(graph.file): graph.sha256}
    if graph.data:
        sources[bundle.path(graph.data)] = graph.data_sha256 or ""
    room = ROOM * graph_bytes(bundle, graph)
    with whole_folder(folder, wanted_bytes=room, remedy=ELSEWHERE, alone=alone) as partial:
        optimise(partial / GRAPH, DATA)
        for path, wanted in sources.items():  # the key has these hashes, and the files may have changed since
            if sha256(path) != wanted:
                raise MmgenError(f"{path} is not the manifest's", remedy="make the bundle again, or copy it again")
        (partial / DATA).touch()  # a graph may have no weights large enough for the file
        files = {name: _checksum(partial / name) for name in (GRAPH, DATA)}
        record = to_json(Optimised(identity, role, files))
        (partial / SIDECAR).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
