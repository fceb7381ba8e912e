"""A user's own code as a source: ``package.module:function`` or ``path/to/file.py:function``."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

from mmgen.export.base.model import Model
from mmgen.runtime.base.choices import did_you_mean
from mmgen.runtime.base.errors import MmgenError


def split(source: str) -> tuple[str, str] | None:
    """Split a source of this form into module and function; None for any other."""
    module, colon, function = source.rpartition(":")
    return (module, function) if colon and module and function.isidentifier() else None


def load(module: str, function: str) -> Model:
    """Import a module, call its function without arguments, and take the ``Model`` it returns.

    As with ``python -m`` and ``python file.py``, the current folder, or the file's, is put on ``sys.path`` for good:
    the code may import its neighbours at any time.

    Raises:
        MmgenError: no such module or function, an exception in either (kept as ``__cause__``), another type returned.
    """
    source = f"{module}:{function}"
    try:
        imported = _import(module)
    except (Exception, SystemExit) as error:
        raise MmgenError(
            f"{module} can't be imported ({_name(error)})", remedy="run with --debug for the traceback"
        ) from error
    made = getattr(imported, function, None)
    if not callable(made):
        functions = [value for value in vars(imported).values() if inspect.isfunction(value)]
        own = sorted(f.__name__ for f in functions if f.__module__ == imported.__name__ and f.__name__[0] != "_")
        raise MmgenError(
            f"{module} has no function {function!r}", wanted=f"one of {', '.join(own) or '(it has none of its own)'}",
            remedy=did_you_mean(function, own),
        )  # fmt: skip
    try:
        model = made()
    except MmgenError:
        raise
    except (Exception, SystemExit) as error:
        raise MmgenError(f"{source} failed ({_name(error)})", remedy="run with --debug for the traceback") from error
    if not isinstance(model, Model):
        kind = type(model)
        raise MmgenError(
            f"{source} returned", got=f"{kind.__module__}.{kind.__qualname__}", wanted="mmgen.export.Model"
        )
    return model


def _import(module: str) -> ModuleType:
    if not module.endswith(".py"):
        _search(Path.cwd())
        return importlib.import_module(module)
    path = Path(module).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    _search(path.parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # the name ends with .py
    imported = importlib.util.module_from_spec(spec)
    before = sys.modules.get(path.stem)
    sys.modules[path.stem] = imported  # dataclasses look their module up by its name
    try:
        spec.loader.exec_module(imported)
    except BaseException:
        if before is None:
            del sys.modules[path.stem]
        else:
            sys.modules[path.stem] = before
        raise
    return imported


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
