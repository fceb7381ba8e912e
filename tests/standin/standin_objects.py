"""What the stand-in for TensorRT is made of: classes and enumerations cut to what a real release has.

An attribute that the release doesn't have raises AttributeError, as there.  One that it has and the stand-in doesn't
raises ``Misuse`` and says its name.
"""

import collections
import inspect
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from standin_cuda import Cuda
from standin_memory import Misuse


class Library:
    """One release of TensorRT on one machine; every class of its module refers to it."""

    def __init__(self, cuda: Cuda, *, rtx: bool, version: str) -> None:
        self.cuda, self.rtx, self.version = cuda, rtx, version
        self.module: Any = None
        self.logger: weakref.ref[Any] | None = None
        self.counts: collections.Counter[str] = collections.Counter()
        self._faults: dict[str, int] = {}
        self.lock = threading.RLock()

    def live(self) -> dict[str, int]:
        """Runtimes, engines and contexts that weren't destroyed, without the zeros."""
        return {kind: number for kind, number in self.counts.items() if number}

    def fail(self, name: str, call: int = 1) -> None:
        """Make the ``call``-th next call of a method fail as it fails where memory is out."""
        self._faults[name] = call

    def fails(self, name: str) -> bool:
        """Whether it was asked to fail now."""
        if name not in self._faults:
            return False
        self._faults[name] -= 1
        if self._faults[name]:
            return False
        del self._faults[name]
        return True

    def heal(self) -> None:
        """Forget faults that didn't strike."""
        self._faults.clear()

    def misuse(self, message: str) -> Misuse:
        """To raise."""
        return self.cuda.memory.misuse(message)

    def make(self, name: str, *args: Any, **named: Any) -> Any:
        """An object of a class that users can't construct."""
        kind = getattr(self.module, name)
        made = kind.__new__(kind)
        made._begin(*args, **named)
        return made

    def take_logger(self, logger: Any) -> None:
        """The first that any object is given serves all of them, as long as the process lives.

        Raises:
            TypeError: it is none, or its base class wasn't initialised.
        """
        if not isinstance(logger, self.module.ILogger):
            raise TypeError(f"incompatible constructor arguments, invoked with {logger!r}")
        if not getattr(logger, "_ready", False):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        if self.logger is None:
            self.logger = weakref.ref(logger)

    def log(self, severity: str, message: str) -> None:
        """Give the logger a message."""
        assert self.logger is not None
        logger = self.logger()
        if logger is None:
            raise self.misuse("the first logger was collected; TensorRT keeps its address and crashes")
        logger.log(getattr(self.module.ILogger.Severity, severity), message)

    def needs_device(self, what: str) -> None:
        """Standard TensorRT crashes without a device; TensorRT for RTX doesn't."""
        if not self.rtx and not self.cuda.ready:
            raise self.misuse(f"{what} of TensorRT without a CUDA device: a segmentation fault")


class Object:
    """Base of emulated classes; private names are the stand-in's own."""

    _library: Library

    def __init__(self, *args: Any, **named: Any) -> None:
        raise TypeError(f"{type(self).__module__}.{type(self).__name__}: No constructor defined!")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            found = inspect.getattr_static(type(self), name, None)
            if found is None or isinstance(found, Absent):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            if not isinstance(found, property) or found.fset is None:
                if isinstance(found, Unknown):
                    raise found.misuse()
                raise AttributeError(f"{type(self).__name__!r}: property {name!r} has no setter")
        object.__setattr__(self, name, value)


class Plain(property):
    """A property that only keeps what it was given."""

    def __init__(self, name: str, default: Any = None) -> None:
        key = f"_plain_{name}"
        super().__init__(
            lambda self: getattr(self, key, default), lambda self, value: object.__setattr__(self, key, value)
        )


class Absent:
    """An attribute that this release doesn't have."""

    def __init__(self, owner: str, name: str) -> None:
        self.message = f"{owner!r} object has no attribute {name!r}"

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(self.message)


class Unknown:
    """An attribute that this release has and the stand-in doesn't."""

    def __init__(self, library: Library, owner: str, name: str) -> None:
        self.library, self.message = library, f"the stand-in has no {owner}.{name}"

    def misuse(self) -> Misuse:
        return self.library.misuse(self.message)

    def __get__(self, instance: Any, owner: type) -> Any:
        raise self.misuse()


def cut(base: type, names: Iterable[str], library: Library, module: str) -> type:
    """An emulated class with a release's names alone."""
    wanted = {name for name in names if not name.startswith("_")}
    have = {name for name in dir(base) if not name.startswith("_")}
    space: dict[str, Any] = {"_library": library, "__module__": module, "__qualname__": base.__name__}
    space |= {name: Absent(f"{module}.{base.__name__}", name) for name in have - wanted}
    space |= {name: Unknown(library, base.__name__, name) for name in wanted - have}
    return type(base.__name__, (base,), space)


def enumeration(name: str, members: Mapping[str, int], module: str) -> type:
    """As pybind11 makes them: a member is no number, but converts to one."""

    def represent(self: Any) -> str:
        return f"<{name}.{self.name}: {self.value}>"

    kind = type(
        name,
        (),
        {
            "__module__": module,
            "__init__": _begin_member,
            "__int__": lambda self: self.value,
            "__index__": lambda self: self.value,
            "__hash__": lambda self: self.value,
            "__eq__": lambda self, other: type(other) is kind and other.value == self.value,
            "__repr__": represent,
            "__str__": lambda self: f"{name}.{self.name}",
        },
    )
    found = {}
    for member, value in members.items():
        found[member] = kind(value)  # type: ignore[call-arg]
        found[member].name = member
        setattr(kind, member, found[member])
    kind.__members__ = found  # type: ignore[attr-defined]
    return kind


def _begin_member(self: Any, value: int) -> None:
    names = [n for n, m in getattr(type(self), "__members__", {}).items() if m.value == value]
    self.value, self.name = int(value), names[0] if names else "???"
