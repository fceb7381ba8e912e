"""Links in a bundle are refused: through one, files elsewhere would be read, written and deleted."""

import os
from pathlib import Path

from mmgen.runtime.base.errors import MmgenError

REMEDY = "delete the link, or put the folder itself in its place"


def is_link(path: Path) -> bool:
    """Check whether there is a link, or on Windows a junction, wherever it leads to."""
    junction = getattr(os.path, "isjunction", None)  # since Python 3.12
    return path.is_symlink() or (junction is not None and junction(path))


def own(path: Path, *below: str) -> Path:
    """Return a folder inside a bundle, which need not exist.

    Args:
        path: of the bundle, which may be a link itself.
        below: names of the folders down to it.

    Raises:
        MmgenError: one of them is a link.
    """
    for name in below:
        path = path / name
        if is_link(path):
            raise MmgenError(f"{path} is a link, and a bundle's folders must not be links", remedy=REMEDY)
    return path
