"""mmgen as pip knows it: the distribution's name, and the command that adds an extra to it.

Modules and commands are called mmgen.  On the package index that name belongs to another project, so the distribution
has a name of its own, and the command depends on where this installation came from.
"""

from pathlib import Path
from typing import Any

from mmgen.runtime.base.errors import MmgenError

NAME = "mmgen-dit"


def version() -> str:
    """Return the installed version."""
    from importlib.metadata import version  # slow to import, and not needed to load a bundle

    return version(NAME)


def _origin() -> dict[str, Any] | None:
    """Read where pip installed mmgen from (PEP 610): nothing of an index, None where it isn't installed."""
    import json
    from importlib.metadata import distributions

    for found in distributions(name=NAME):
        if found.read_text("METADATA"):  # not the egg-info that a build leaves in a clone, which knows no origin
            return json.loads(found.read_text("direct_url.json") or "{}")  # type: ignore[no-any-return]
    return None


def _local(origin: dict[str, Any] | None) -> Path | None:
    """Return the folder or file that it was installed from, unless it came over a network."""
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    if not origin or "vcs_info" in origin or not origin["url"].startswith("file:"):
        return None
    return Path(url2pathname(urlsplit(origin["url"]).path))


def source_folder() -> Path | None:
    """Return the folder of mmgen's source that this installation was made from, while it is there."""
    path = _local(_origin())
    return path if path and path.is_dir() else None


def extra(name: str) -> str:
    """Return the command that installs an extra of ``pyproject.toml``: from the same source as mmgen itself."""
    import shlex

    origin = _origin()
    if origin is not None and not origin:
        return f"pip install '{NAME}[{name}]'"
    if path := _local(origin):
        if path.exists():
            editable = "-e " if origin and origin.get("dir_info", {}).get("editable") else ""
            return f"pip install {editable}{shlex.quote(f'{path}[{name}]')}"
    elif origin and "vcs_info" in origin:
        repository = origin["vcs_info"]
        return f"pip install '{NAME}[{name}] @ {repository['vcs']}+{origin['url']}@{repository['commit_id']}'"
    elif origin:
        return f"pip install '{NAME}[{name}] @ {origin['url']}'"
    return f"pip install '.[{name}]' in the folder of mmgen's source"


def unloaded(library: str, error: Exception, remedy: str) -> MmgenError:
    """Make the error for a library that can't be imported: it isn't installed, or something keeps it from loading.

    Args:
        library: its usual name.
        error: of the import.
        remedy: the command that installs it.
    """
    if isinstance(error, ModuleNotFoundError):
        return MmgenError(f"{library} is not installed", remedy=remedy)
    reason = " ".join(str(error).split()) or type(error).__name__
    return MmgenError(
        f"{library} is installed and can't be loaded ({reason})",
        remedy=f"free memory or raise the process's limit if that is what it lacks, or install it again: {remedy}",
    )
