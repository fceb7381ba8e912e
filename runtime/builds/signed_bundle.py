"""Signing of a bundle: its manifest, and the sidecar of each build of engines that it has."""

from collections.abc import Callable
from pathlib import Path

from mmgen.runtime.builds import engine_store
from mmgen.runtime.builds.engine_build import SIDECAR
from mmgen.runtime.builds.engine_store import check_engines
from mmgen.runtime.files.json_records import read_json
from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.hashes import checksum_of
from mmgen.runtime.storage.schema import MANIFEST
from mmgen.runtime.storage.signatures import sign


def sign_bundle(folder: Path, private_key: Path, passphrase: Callable[[], str]) -> list[Path]:
    """Sign a bundle and its builds, after comparing all files with their hashes.

    Args:
        private_key: a file.
        passphrase: called if the key is encrypted.

    Returns:
        The signatures' paths.

    Raises:
        MmgenError: a file isn't what the bundle says, the key can't be read, or the bundle can't be written.
    """
    bundle = read_bundle(folder)
    builds = engine_store.builds(bundle)
    for path, build in builds:
        check_engines(path, build)
    manifest = bundle.path(MANIFEST)
    contents = {manifest: checksum_of(read_json(manifest)).encode()}  # of what it says: an older one says less
    contents |= {path / SIDECAR: (path / SIDECAR).read_bytes() for path, _ in builds}
    return [sign(path, content, private_key, passphrase) for path, content in contents.items()]
