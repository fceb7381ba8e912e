"""A stand-in for ``tensorrt`` and ``tensorrt_rtx`` in the shape of a real release, where there is no GPU.

Its module has the names, enumerations and numbers that the release's bindings have, read from them by ``api``.
Engines hold the ONNX model and run it with ONNX Runtime on the stand-in's device memory.
"""

import sys
import types
from typing import Any

import api
import numpy as np
import pytest
import standin_builder
import standin_context
import standin_engine
import standin_network
from standin_cuda import Cuda
from standin_objects import Library, Object, cut, enumeration

EMULATED = {
    name: thing
    for file in (standin_builder, standin_context, standin_engine, standin_network)
    for name, thing in vars(file).items()
    if isinstance(thing, type) and thing.__module__ == file.__name__ and not name.startswith("_")
    if issubclass(thing, Object) and thing is not Object
}
SEVERITIES = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
ALIASES = {
    "float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int8": "INT8", "int32": "INT32", "int64": "INT64",
    "bool": "BOOL", "uint8": "UINT8",
}  # fmt: skip


def tensorrt(release: str, cuda: Cuda) -> Library:
    """A release, one of ``api.VERSIONS``, on a device; its module is ``.module``.

    Skips the test where the release's bindings can't be read.
    """
    rtx = release == api.RTX
    names, members = api.surface(release), api.members(release)
    name = "tensorrt_rtx" if rtx else "tensorrt"
    library = Library(cuda, rtx=rtx, version=api.own_version(release))
    space: dict[str, Any] = {kind: enumeration(kind, values, name) for kind, values in members.items()}
    for kind, emulated in EMULATED.items():
        if kind in names:
            space[kind] = cut(emulated, names[kind], library, name)
    severity = enumeration("Severity", SEVERITIES, name)
    levels = {"Severity": severity, **severity.__members__, "__module__": name}  # type: ignore[attr-defined]
    space["ILogger"] = type("ILogger", (standin_builder.ILogger,), levels)
    space["Logger"] = type("Logger", (space["ILogger"], standin_builder.Logger), levels)
    space["IProgressMonitor"] = type("IProgressMonitor", (standin_builder.IProgressMonitor,), {"__module__": name})
    space["IHostMemory"] = type("IHostMemory", (standin_builder.IHostMemory,), {"_library": library})
    space["Dims"] = standin_network.Dims
    types_of = space["DataType"]
    sizes = {**standin_engine.NUMPY, "INT8": "int8", "BF16": "uint16"}
    types_of.itemsize = property(lambda self: np.dtype(sizes[self.name]).itemsize)
    space |= {alias: getattr(types_of, member) for alias, member in ALIASES.items()}
    space["nptype"] = lambda kind: np.dtype(sizes[kind.name]).type
    space["volume"] = lambda shape: int(np.prod(shape))
    space["__version__"] = library.version

    module = types.ModuleType(name, __doc__)
    allowed = names[""] | {"__version__"}
    vars(module).update({key: thing for key, thing in space.items() if key in allowed})

    def attribute(missing: str) -> Any:
        if missing in allowed and not missing.startswith("__"):
            raise library.misuse(f"the stand-in has no {name}.{missing}")
        raise AttributeError(f"module {name!r} has no attribute {missing!r}")

    module.__getattr__ = attribute  # type: ignore[method-assign]
    library.module = module
    return library


def install(library: Library, patch: pytest.MonkeyPatch) -> None:
    """Take the place of the real module until the test ends."""
    patch.setitem(sys.modules, library.module.__name__, library.module)
