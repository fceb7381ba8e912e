"""Engines in a bundle: ``engines/KEY/``, each with its ``build.json``.

An existing path isn't trusted: a build counts if its sidecar is complete and belongs to its folder, an engine if its
bytes have the sidecar's hash.
"""

import dataclasses
import hashlib
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import ENGINES, SCHEMA, SIDECAR, Build, EngineFile, Place
from mmgen.runtime.builds.identity import differences, identity_of_graph
from mmgen.runtime.files.json_records import from_json, read_json
from mmgen.runtime.files.links import is_link, own
from mmgen.runtime.storage.bundle import outputs_of
from mmgen.runtime.storage.hashes import BRIEF, sha256
from mmgen.runtime.storage.schema import Bundle

KEY = "[0-9a-f]{32}"  # names of builds


def find(bundle: Bundle, place: Place) -> tuple[Path, Build]:
    """Find the newest build whose engines run here.

    Args:
        bundle: as read; engines must have been made from its graphs' hashes.
        place: the library and the device, as ``library.place`` gives it.

    Returns:
        The build's folder and sidecar.  The engines themselves are checked by ``engine_bytes``.

    Raises:
        MmgenError: no build fits, with the first field in which the nearest one differs; or there are no builds; or a
            link leads to them.
    """
    misfits: list[list[str]] = []
    skipped: list[str] = []
    for folder, build in scan(bundle):
        if isinstance(build, MmgenError):
            skipped.append(str(without_remedy(build)))
        elif wrong := misfit(bundle, build, place):
            misfits.append(wrong)
        elif unsigned := _unsigned(bundle, folder):
            skipped.append(str(without_remedy(unsigned)))
        else:
            return folder, build
    note = "".join(f" (skipped: {reason})" for reason in skipped)
    command = build_command(bundle, place.compute_capabilities if place.flavour == "tensorrt-rtx" else ())
    if not misfits:
        raise MmgenError(f"{bundle.folder} has no engines{note}", remedy=command)
    first, *others = min(misfits, key=len)
    more = f" and {len(others)} more that differ" if others else ""
    raise MmgenError(f"no engine for this device: {first}{more}{note}", remedy=command)


def builds(bundle: Bundle) -> list[tuple[Path, Build]]:
    """List the bundle's builds whose sidecar can be read, newest first."""
    return [(folder, build) for folder, build in scan(bundle) if isinstance(build, Build)]


def scan(bundle: Bundle) -> list[tuple[Path, Build | MmgenError]]:
    """List every build's folder with its sidecar, newest first, or with the reason why it can't be read, those last.

    Raises:
        MmgenError: their folder is a link.
    """
    found = [(path, _read(path, bundle)) for path in _folders(own(bundle.folder, ENGINES))]
    return sorted(found, key=lambda item: item[1].created if isinstance(item[1], Build) else "", reverse=True)


def engine_bytes(folder: Path, engine: EngineFile) -> bytes:
    """Read an engine once: the bytes whose hash was compared are those that are returned.

    Raises:
        MmgenError: the file can't be read, is cut short, or was changed.
    """
    path = folder / engine.file
    try:
        _compare_size(path, engine)
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(f"{path} can't be read ({error.strerror})", folder) from error
    _compare(path, hashlib.sha256(content).hexdigest(), engine.sha256, "sha256")
    return content


def check_engines(folder: Path, build: Build) -> None:
    """Compare every engine of a build with its sidecar, in little memory; errors as for ``engine_bytes``."""
    for engine in build.engines.values():
        path = folder / engine.file
        try:
            _compare_size(path, engine)
            _compare(path, sha256(path), engine.sha256, "sha256")
        except OSError as error:
            raise _damaged(f"{path} can't be read ({error.strerror})", folder) from error


def graph_hashes(bundle: Bundle) -> dict[str, str]:
    """Return each graph's identity, by role: of its ONNX file and external data."""
    return {role: identity_of_graph(graph.sha256, graph.data_sha256) for role, graph in bundle.graphs.items()}


def changed_graphs(bundle: Bundle, build: Build) -> list[str]:
    """List the bundle's graphs that a build wasn't made from, as ``graphs.step: found '1a2b', wanted '3c4d'``."""
    found = build.identity.graphs
    return [
        f"graphs.{role}: found {found.get(role, 'none')[:BRIEF]!r}, wanted {wanted[:BRIEF]!r}"
        for role, wanted in graph_hashes(bundle).items()
        if found.get(role) != wanted
    ]


def outdated(bundle: Bundle, build: Build) -> list[str]:
    """List the graphs that a build wasn't made from, of the output that it is nearest to; none: it is of an output."""
    return min((changed_graphs(output, build) for output in outputs_of(bundle).values()), key=len)


def misfit(bundle: Bundle, build: Build, place: Place) -> list[str]:
    """List the fields that keep a build's engines from running in a place; none: they fit.  Options don't matter."""
    found = build.identity.place
    wanted = place
    if place.flavour == "tensorrt-rtx" and set(place.compute_capabilities) <= set(found.compute_capabilities):
        wanted = dataclasses.replace(place, compute_capabilities=found.compute_capabilities)
    return [*changed_graphs(bundle, build), *differences(wanted, found, "place")]


def build_command(bundle: Bundle, targets: Sequence[str] = ()) -> str:
    """Return the command that builds missing engines."""
    return " ".join(["mmgen build", shlex.quote(str(bundle.folder)), *(f"--target {name}" for name in targets)])


def without_remedy(error: MmgenError, remedy: str | None = None) -> MmgenError:
    """Return the same error with another remedy, or none."""
    return MmgenError(error.what, got=error.got, wanted=error.wanted, remedy=remedy)


def _unsigned(bundle: Bundle, folder: Path) -> MmgenError | None:
    """Return why a build can't be trusted, where signatures are required; None: it can."""
    if bundle.public_key is None:
        return None
    from mmgen.runtime.storage import signatures as signing

    sidecar = folder / SIDECAR
    try:
        signing.check(sidecar, sidecar.read_bytes(), bundle.public_key)
    except MmgenError as error:
        return error
    return None


def _folders(folder: Path) -> list[Path]:
    """List the folders named as builds are, and any other folder that has a sidecar."""
    if not folder.is_dir():
        return []
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    return [path for path in visible if re.fullmatch(KEY, path.name) or (path / SIDECAR).is_file()]


def _read(folder: Path, bundle: Bundle) -> Build | MmgenError:
    try:
        return read_build(folder)
    except MmgenError as error:
        return without_remedy(error, build_command(bundle))


def read_build(folder: Path) -> Build:
    """Read and check a build's sidecar: complete, of this schema and folder, and naming files in the folder alone.

    Raises:
        MmgenError: it isn't, or the folder is a link.
    """
    if is_link(folder):
        raise MmgenError(f"{folder} is a link")
    sidecar = folder / SIDECAR
    record = read_json(sidecar)
    try:
        schema = record["identity"]["schema"]
    except (TypeError, KeyError, IndexError) as error:
        raise MmgenError(f"{sidecar} has no schema") from error
    if schema != SCHEMA:
        raise MmgenError(f"{sidecar}: schema", got=repr(schema), wanted=repr(SCHEMA))
    build = from_json(Build, record, str(sidecar))
    if (key := build.identity.key) != folder.name:
        raise MmgenError(f"{sidecar} is of another build", got=key, wanted=folder.name)
    if set(build.engines) != set(build.identity.graphs):
        raise MmgenError(f"{sidecar}: engines", got=sorted(build.engines), wanted=sorted(build.identity.graphs))
    for engine in build.engines.values():
        if Path(engine.file).name != engine.file or "\\" in engine.file:
            raise MmgenError(f"{sidecar}: path {engine.file!r} leaves the folder")
    return build


def _compare_size(path: Path, engine: EngineFile) -> None:
    """Check that it is a regular file, and its size, before it is read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise _damaged(f"{path} is no file", path.parent)
    _compare(path, status.st_size, engine.bytes, "bytes")


def _compare(path: Path, got: object, wanted: object, what: str) -> None:
    if got == wanted:
        return
    raise _damaged(f"{path}: {what}", path.parent, str(got)[:BRIEF], str(wanted)[:BRIEF])


def _damaged(what: str, folder: Path, got: object = None, wanted: object = None) -> MmgenError:
    bundle = folder.parent.parent  # of BUNDLE/engines/KEY
    return MmgenError(
        what, got=got, wanted=wanted, remedy=f"the build is damaged; mmgen build {shlex.quote(str(bundle))}"
    )
