"""mmgen as pip knows it: the distribution's name, and the command that adds an extra to it.

Modules and commands are called mmgen.  On the package index that name belongs to another project, so the distribution
has a name of its own, and the command depends on where this installation came from.
"""

from mmgen.runtime.base.errors import MmgenError

NAME = "mmgen-dit"


def version() -> str:
    """Return the installed version."""
    from importlib.metadata import version  # slow to import, and not needed to load a bundle

    return version(NAME)


def extra(name: str) -> str:
    """Return the command that installs an extra of ``pyproject.toml``: from the same source as mmgen itself."""
    import json
    import shlex
    from importlib.metadata import PackageNotFoundError, distribution
    from pathlib import Path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    from_source = f"pip install '.[{name}]' in the folder of mmgen's source"
    try:
        text = distribution(NAME).read_text("direct_url.json")  # as pip writes it, unless it came from an index
    except PackageNotFoundError:
        return from_source
    if text is None:
        return f"pip install '{NAME}[{name}]'"
    origin = json.loads(text)
    url, repository = origin["url"], origin.get("vcs_info")
    if repository:
        return f"pip install '{NAME}[{name}] @ {repository['vcs']}+{url}@{repository['commit_id']}'"
    if not url.startswith("file:"):
        return f"pip install '{NAME}[{name}] @ {url}'"
    path = Path(url2pathname(urlsplit(url).path))
    editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {editable}{shlex.quote(f'{path}[{name}]')}" if path.exists() else from_source


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
