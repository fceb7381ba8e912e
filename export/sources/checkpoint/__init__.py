"""mmgen's own checkpoints: a folder of ``config.json``, ``weights.safetensors`` and ``tokenizer.json``.

Each format has a module, which both writes and reads it; nothing else knows it.
"""

from pathlib import Path

from mmgen.export.base.model import Model
from mmgen.export.base.weights import read_json
from mmgen.export.sources.checkpoint import any_to_any, text_to_picture
from mmgen.export.sources.checkpoint.folder import CONFIG
from mmgen.runtime.base.errors import MmgenError

FAMILY = "mmgen-checkpoint/"


def load(folder: Path) -> Model:
    """Load the model of a checkpoint folder of any format.

    Raises:
        MmgenError: a missing or damaged file, a wrong hash, an unknown format or field, weights that don't fit the
            configuration, parts that don't fit together.
    """
    match read_json(folder / CONFIG).get("format"):
        case text_to_picture.FORMAT:
            return text_to_picture.load(folder)
        case any_to_any.FORMAT:
            return any_to_any.load(folder)
        case other:
            wanted = f"{text_to_picture.FORMAT!r} or {any_to_any.FORMAT!r}"
            raise MmgenError(f"{folder / CONFIG}: format", got=repr(other), wanted=wanted, remedy="update mmgen")
