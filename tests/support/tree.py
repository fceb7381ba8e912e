"""The repository as tests read it."""

import ast
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
HELPERS = [TESTS / name for name in ("fakes", "models", "oracles", "standin", "support")]
PYTHON_PATH = os.pathsep.join(map(str, HELPERS))


def imports(file: Path) -> set[str]:
    """Every module that a file imports anywhere; ``from a import b`` counts as ``a`` and as ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def top_level(file: Path) -> set[str]:
    """Return the same, up to the first dot."""
    return {name.partition(".")[0] for name in imports(file)}
