"""Bundles and other folders that tests look into, and manifests that they change by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmgen.runtime.storage.hashes import CHECKSUM, checksum_of
from mmgen.runtime.storage.schema import MANIFEST


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change ``bundle.json``, whose checksum is then that of what it says."""
    record = json.loads((bundle / MANIFEST).read_text())
    record.pop(CHECKSUM, None)
    change(record)
    (bundle / MANIFEST).write_text(json.dumps({**record, CHECKSUM: checksum_of(record)}))


def left_in(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())
