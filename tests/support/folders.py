"""What is in a folder."""

from pathlib import Path


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
