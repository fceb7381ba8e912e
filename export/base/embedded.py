"""The models that come with mmgen, a checkpoint folder each, named after its model.

They are a distribution of their own, ``mmgen-checkpoints``, so that what only runs bundles carries no weights.  What
was installed from a clone finds them there, too.
"""

import importlib.util
from pathlib import Path

from mmgen.runtime.base import distribution
from mmgen.runtime.base.errors import MmgenError

DEFAULT = "emoji"


def checkpoints() -> Path | None:
    """Find the folder of checkpoints: as it is installed, or in the clone that mmgen was installed from."""
    if (spec := importlib.util.find_spec("mmgen.checkpoints")) and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    source = distribution.source_folder()
    return source / "checkpoints" if source and (source / "checkpoints").is_dir() else None


def names() -> tuple[str, ...]:
    """List the embedded models in alphabetical order."""
    found = checkpoints()
    return tuple(sorted(config.parent.name for config in found.glob("*/config.json"))) if found else ()


def folder(name: str) -> Path:
    """Return where a model's checkpoint is, or would be.

    Raises:
        MmgenError: No embedded models are here.
    """
    if found := checkpoints():
        return found / name
    raise MmgenError(
        f"the model {name} of the distribution mmgen-checkpoints is not installed",
        remedy="pip install ./checkpoints in the folder of mmgen's source",
    )
