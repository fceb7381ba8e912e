"""The models that come with mmgen: checkpoint folders inside the package, each named after its model."""

from pathlib import Path

DEFAULT = "emoji"
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def names() -> tuple[str, ...]:
    """List the embedded models in alphabetical order."""
    return tuple(sorted(config.parent.name for config in CHECKPOINTS.glob("*/config.json")))


def folder(name: str) -> Path:
    """Return where a model's checkpoint is, or would be."""
    return CHECKPOINTS / name
