"""A bundle's folder, read and written: the exporter builds a ``Bundle``, and everything else reads it here."""

import dataclasses
import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from mmgen.runtime.base.choices import did_you_mean, either
from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.parallel import at_once
from mmgen.runtime.files.json_records import from_json, read_json, to_json
from mmgen.runtime.storage.consistency import check_parts
from mmgen.runtime.storage.hashes import BRIEF, CHANGED, CHECKSUM, checksum_of, sha256
from mmgen.runtime.storage.manifest import Manifest, bundles_of
from mmgen.runtime.storage.schema import EMBED, FORMAT, FORMAT_2, MANIFEST, Bundle, Condition, Graph

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


def write_manifest(bundle: Bundle | Manifest, folder: Path) -> None:
    """Write ``bundle.json`` into a folder, completely or not at all."""
    from mmgen.runtime.files.atomic import whole_file  # not needed for reading

    record = to_json(bundle)
    with whole_file(folder / MANIFEST) as write:
        write((json.dumps({**record, CHECKSUM: checksum_of(record)}, indent=1) + "\n").encode())


def read_bundle(folder: AnyPath, *, verify: bool = True, public_key: AnyPath | None = None) -> Bundle:
    """Read and check a bundle; of several outputs, return the default one, whose ``outputs`` are all of them.

    Args:
        folder: the ``.mmgen`` folder.
        verify: also compare every file with its hash; False checks only that the files are there.
        public_key: the file of a key that it must be signed with; engines are then used only if they are, too.

    Raises:
        MmgenError: not a bundle or not signed with the key, unknown format, a missing or unknown field, a wrong type,
            parts that don't fit together, a path that leaves the folder, a missing file, a wrong hash.
    """
    try:
        root = Path(os.fsdecode(folder))
    except TypeError as error:
        raise MmgenError("bundle", got=shown(folder), wanted="the path of a folder") from error
    manifest = root / MANIFEST
    if not os.path.isdir(root) and not _put_back(root):  # unlike Path's, isdir is false for impossible names
        raise MmgenError(f"bundle {root} is not there", remedy="make one with mmgen-export")
    record = read_json(manifest)
    got = record.get("format") if isinstance(record, dict) else None
    if got not in (FORMAT, FORMAT_2):
        wanted = f"{FORMAT!r} or {FORMAT_2!r}"
        raise MmgenError(f"{manifest}: format", got=shown(got), wanted=wanted, remedy="export again, or update mmgen")
    wanted = checksum_of(record)
    if (checksum := record.pop(CHECKSUM, wanted)) != wanted:  # older bundles have none
        raise MmgenError(f"{manifest}: {CHECKSUM}", got=str(checksum)[:BRIEF], wanted=wanted[:BRIEF], remedy=CHANGED)
    key = None if public_key is None else Path(os.fsdecode(public_key))
    if key is not None:
        from mmgen.runtime.storage import signatures as signing  # few calls need it

        if not verify:
            raise MmgenError("a signature proves nothing of files that aren't compared", remedy="leave verify as it is")
        signing.check(manifest, wanted.encode(), key)

    bundles = _outputs(record, str(manifest))
    files = {root / _inside(file, manifest): wanted for bundle in bundles for file, wanted in _files(bundle)}
    for bundle in bundles:
        check_parts(bundle, str(manifest) if len(bundles) == 1 else f"{manifest}: outputs.{bundle.output}")
    for path in files:
        if not os.path.isfile(path):  # unlike Path's, it is false for impossible names
            raise MmgenError(f"{path} is missing", remedy="copy the whole bundle again")
    try:
        hashes = list(at_once(sha256, files)) if verify else []
    except OSError as error:
        what = f"{error.filename} can't be read ({error.strerror})"
        raise MmgenError(what, remedy="copy the bundle again") from error
    for (path, hashed), found in zip(files.items(), hashes, strict=False):
        if found != hashed:
            raise MmgenError(
                f"{path}: sha256",
                got=found[:BRIEF],
                wanted=str(hashed)[:BRIEF],
                remedy=CHANGED,
            )
    outputs: dict[str, Bundle] = {}
    for each in bundles:
        outputs[each.output] = dataclasses.replace(each, folder=root, public_key=key, outputs=outputs)
    return outputs[bundles[0].output]


def outputs_of(bundle: Bundle) -> dict[str, Bundle]:
    """Return the outputs of a bundle by name, the default one first."""
    return {**bundle.outputs, bundle.output: bundle}


def output_of(bundle: Bundle, name: object) -> Bundle:
    """Return an output of a bundle as ``read_bundle`` returned it; None: the default one.

    Raises:
        MmgenError: there is no such output.
    """
    if name is None:
        return bundle
    outputs = outputs_of(bundle)
    if not isinstance(name, str) or name not in outputs:
        what, remedy = f"bundle {bundle.folder}: output", did_you_mean(name, outputs)
        raise MmgenError(what, got=shown(name), wanted=either(outputs), remedy=remedy)
    return outputs[name]


def graph_bytes(bundle: Bundle, graph: Graph) -> int:
    """Return the bytes of a graph's files; where it shares its weights' file with others, of those that it reads.

    Of a table that is looked up it reads the entries that are taken.
    """
    if len(bundle.outputs) > 1 and graph.data:
        return bundle.path(graph.file).stat().st_size + (graph.weight_bytes or 0)
    return sum(bundle.path(file).stat().st_size for file in (graph.file, graph.data) if file)


def embedded(bundle: Bundle) -> dict[str, tuple[Condition, Bundle]]:
    """Return the inputs that have an embedding, by name, each with the first output that has the graph for it."""
    found: dict[str, tuple[Condition, Bundle]] = {}
    for output in outputs_of(bundle).values():
        for condition in output.conditions:
            if EMBED + condition.name in output.graphs:
                found.setdefault(condition.name, (condition, output))
    return found


def _outputs(record: dict[str, Any], where: str) -> list[Bundle]:
    """Return the outputs of a manifest, the default one first."""
    if record["format"] == FORMAT:
        bundle = from_json(Bundle, record, where)
        return [dataclasses.replace(bundle, output=bundle.media.kind)]
    return list(bundles_of(from_json(Manifest, record, where), where).values())


def _put_back(root: Path) -> bool:
    """Put back a bundle that a killed export had set aside to replace it; return whether there was one."""
    from mmgen.runtime.files.atomic import followed  # not needed where there is a bundle
    from mmgen.runtime.files.folders import put_back

    return "\0" not in str(root) and put_back(followed(root))


def _files(bundle: Bundle) -> list[tuple[str, str | None]]:
    files: list[tuple[str, str | None]] = []
    for graph in bundle.graphs.values():
        files.append((graph.file, graph.sha256))
        if graph.data:
            files.append((graph.data, graph.data_sha256))
    files += bundle.tokenizer_files.items()
    if bundle.golden_sha256:
        files.append((bundle.golden, bundle.golden_sha256))
    files += [(c.null_file, c.null_sha256) for c in bundle.conditions if c.null_file is not None]
    return files


def _inside(file: str, manifest: Path) -> str:
    pure = PurePosixPath(file)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file or ":" in file:
        raise MmgenError(f"{manifest}: path {file!r} leaves the bundle", remedy="do not use this bundle")
    return file
