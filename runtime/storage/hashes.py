"""Hashes of files and of manifests."""

import hashlib
import json
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"  # of the manifest itself, a field that is not the schema's
BRIEF = 16  # digits of a hash that messages show
CHANGED = "the file changed; copy or export the bundle again"


def sha256(path: Path) -> str:
    """Compute the hexadecimal SHA-256 of a file, read in pieces."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def checksum_of(record: dict[str, Any]) -> str:
    """Compute the hexadecimal SHA-256 of the manifest's other fields, as JSON without blanks and with sorted names."""
    rest = {name: value for name, value in record.items() if name != CHECKSUM}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
