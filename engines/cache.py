"""Builds in a bundle: found, made by one process at a time, put in place atomically, and removed.

``engines/KEY/`` appears by one rename when everything in it is written, so a process that dies, at whatever moment,
leaves nothing that is ever used; the next one that builds the same removes what it left.
"""

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds import engine_store as store
from mmgen.runtime.builds import optimised
from mmgen.runtime.builds.engine_build import ENGINES, SIDECAR, Build, Identity, Place
from mmgen.runtime.builds.engine_store import build_command, graph_hashes
from mmgen.runtime.builds.identity import differences
from mmgen.runtime.files.atomic import explained, whole_file
from mmgen.runtime.files.folders import recover, whole_folder
from mmgen.runtime.files.json_records import to_json
from mmgen.runtime.files.links import own
from mmgen.runtime.files.locks import lock_of, locked
from mmgen.runtime.files.unfinished import LABEL, leftovers, unfinished
from mmgen.runtime.storage.bundle import graph_bytes, output_of, read_bundle
from mmgen.runtime.storage.schema import Bundle

__all__ = ["Removed", "building", "find", "folder_of", "graph_hashes", "prune", "publish", "timing_cache"]

Report = Callable[[str, float], None]

ROOM = 1.5  # bytes to have free for each byte of graphs: engines are about as large
TIMING = "timing"  # folder in engines/
ELSEWHERE = "make room, or copy the bundle to a place that can be written"


@dataclass(frozen=True)
class Removed:
    """Something that ``prune`` removed."""

    path: Path
    bytes: int
    reason: str


def folder_of(bundle: Bundle, identity: Identity) -> Path:
    """Return the folder of a build, which need not exist.

    Raises:
        MmgenError: it or the engines' folder is a link.
    """
    return own(bundle.folder, ENGINES, identity.key)


def find(bundle: Bundle, identity: Identity) -> tuple[Path, Build] | None:
    """Find the build of this identity and compare every engine with its hash; None if there is no such build.

    A damaged build counts as none, with a warning that names the file; ``building`` replaces it.
    """
    folder = folder_of(bundle, identity)
    if not folder.exists():
        return None
    try:
        build = store.read_build(folder)
        store.check_engines(folder, build)
    except MmgenError as error:
        warnings.warn(str(store.without_remedy(error, "it is built again")), stacklevel=2)
        return None
    return folder, build


@contextmanager
def building(bundle: Bundle, identity: Identity, progress: Report | None = None) -> Iterator[Path]:
    """Yield an empty folder for a build; after ``publish`` it is moved into place when the block ends well.

    One process at a time is inside for one identity: call ``find`` again before any work, since the process that was
    first may have built it.  A block that leaves the folder empty changes nothing.

    Args:
        bundle: as read.
        identity: of the build to make.
        progress: called when another builder is being waited for.

    Yields:
        A folder next to the one that it becomes, ``folder_of(bundle, identity)``.

    Raises:
        MmgenError: the bundle can't be written, is too full, or has changed since it was read.
    """
    folder = folder_of(bundle, identity)

    def waiting() -> None:
        if progress:
            progress("waiting for another builder of the same", 0.0)

    with explained(folder.parent, ELSEWHERE):
        folder.parent.mkdir(exist_ok=True)
        with locked(lock_of(folder), waiting) as lock:
            room = round(ROOM * sum(graph_bytes(bundle, graph) for graph in bundle.graphs.values()))
            with whole_folder(folder, wanted_bytes=room, remedy=ELSEWHERE, alone=lock == "mine") as partial:
                yield partial
                if any(partial.iterdir()):
                    _unchanged(bundle, identity)


def publish(folder: Path, build: Build) -> None:
    """Write the sidecar into the folder that ``building`` yielded; the engines are there already."""
    with whole_file(folder / SIDECAR) as write:
        write((json.dumps(to_json(build), indent=1) + "\n").encode())


def timing_cache(bundle: Bundle, place: Place) -> Path:
    """Return the path of the file for TensorRT's timings, which need not exist, and create its folder.

    Raises:
        MmgenError: the folder is a link, or can't be made.
    """
    digest = hashlib.sha256(json.dumps(to_json(place), sort_keys=True).encode()).hexdigest()[:8]
    path = own(bundle.folder, ENGINES, TIMING) / f"{place.flavour}.{place.version}.{digest}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmgenError(f"{path.parent} can't be made ({error.strerror})", remedy=ELSEWHERE) from error
    return path


def prune(bundle: Bundle, places: Sequence[Place] = (), onnxruntime: str | None = None) -> list[Removed]:
    """Remove what can't be used any more, and nothing that is being built.

    These are leftovers of builders that were killed, damaged builds, builds of graphs that are no longer the bundle's,
    and builds and timings of other software (TensorRT, driver, system) for the same device; and
    likewise the graphs that ONNX Runtime has optimised.

    Args:
        bundle: as read.
        places: what this machine builds for now; without them, no build is too old.
        onnxruntime: the installed version; without it, no optimised graph is too old.

    Raises:
        MmgenError: something can't be deleted; or there is a link in place of a folder, and then nothing is deleted.
    """
    folder = bundle.path(ENGINES)
    for name in (ENGINES, optimised.FOLDER):
        for below in (TIMING, *_keys(own(bundle.folder, name))):
            own(bundle.folder, name, below)
    kinds: dict[Path, Callable[[Path], str | None]] = {
        folder: lambda build: _stale(build, bundle, places),
        bundle.path(optimised.FOLDER): lambda graph: optimised.stale(bundle, graph, onnxruntime),
    }
    removed: list[Removed] = []
    try:
        for path, stale in [(parent / key, stale) for parent, stale in kinds.items() for key in _keys(parent)]:
            with locked(lock_of(path), None) as lock:
                if lock != "theirs":
                    removed += _clear_leftovers(path, alone=lock == "mine")
                    removed += _clear_stale(path, stale)
        removed += _clear_timings(folder / TIMING, places)
    except OSError as error:
        raise MmgenError(f"{error.filename or folder} can't be deleted ({error.strerror})") from error
    return removed


def _unchanged(bundle: Bundle, identity: Identity) -> None:
    """Check that the graphs are still those of the identity: somebody may have exported again meanwhile."""
    if graph_hashes(output_of(read_bundle(bundle.folder), bundle.output or None)) != identity.graphs:
        raise MmgenError(f"{bundle.folder} changed while it was being built", remedy=build_command(bundle))


def _keys(folder: Path) -> list[str]:
    """List the keys of all that mmgen has in a bundle's engines: builds, unfinished ones, locks."""
    name = re.compile(rf"({store.KEY})|\.({store.KEY})\.(?:lock|{LABEL})")
    names = [match for path in folder.iterdir() if (match := name.fullmatch(path.name))] if folder.is_dir() else []
    return sorted({match[1] or match[2] for match in names})


def _clear_leftovers(folder: Path, alone: bool) -> list[Removed]:
    put_back = not folder.exists()  # a build that was set aside to be replaced
    found = [(Removed(p, _bytes(p), "left by a builder that was ended"), kind) for p, _, kind in leftovers(folder)]
    recover(folder, alone=alone)
    return [item for item, kind in found if not item.path.exists() and not (kind == "old" and put_back)]


def _clear_stale(folder: Path, stale: Callable[[Path], str | None]) -> list[Removed]:
    if not folder.is_dir() or not (reason := stale(folder)):
        return []
    removed = Removed(folder, _bytes(folder), reason)
    with unfinished(folder) as gone:  # half deleted, it would be a damaged build
        folder.rename(gone)
        shutil.rmtree(gone)
    return [removed]


def _stale(folder: Path, bundle: Bundle, places: Sequence[Place]) -> str | None:
    """Return why a build can't be used any more; None if it can."""
    try:
        build = store.read_build(folder)
        if changed := store.outdated(bundle, build):
            return f"made from other graphs: {changed[0]}"
        store.check_engines(folder, build)
    except MmgenError as error:
        return str(store.without_remedy(error))
    for place in places:
        if reason := _other_software(place, build.identity.place):
            return f"made by other software: {reason}"
    return None


def _other_software(wanted: Place, found: Place) -> str | None:
    """Return the field that makes a build unusable on its own device; None if it fits, or is for another device."""
    if wanted.flavour == "tensorrt-rtx":  # these are for many devices
        wanted = replace(wanted, compute_capabilities=found.compute_capabilities)
    if replace(wanted, version=found.version, system=found.system, cuda=found.cuda) != found:
        return None
    return next(iter(differences(wanted, found, "place")), None)


def _clear_timings(folder: Path, places: Sequence[Place]) -> list[Removed]:
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        for place in places:
            ours, current = f"{place.flavour}.", f"{place.flavour}.{place.version}."
            if path.name.startswith(ours) and not path.name.startswith(current):
                removed.append(Removed(path, _bytes(path), f"timings of another TensorRT than {place.version}"))
                path.unlink()
                break
    return removed


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if file.is_file())
