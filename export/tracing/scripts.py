"""Submodules in TorchScript, which torch.export can't look into, run as the Python that they were written in."""

import contextlib
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mmgen.runtime.base.errors import MmgenError


class _Unscripted(nn.Module):
    """A ``ScriptModule``'s parts, with the Python functions of its class."""

    def __init__(self, scripted: Any, methods: dict[str, Any]) -> None:
        super().__init__()
        for name, parameter in scripted.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in scripted.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        for name, child in scripted.named_children():
            self.add_module(name, child)
        for name, method in methods.items():
            self.__dict__[name] = types.MethodType(method, self)
        self.__dict__["_scripted"] = scripted

    def __getattr__(self, name: str) -> Any:
        scripted = self.__dict__.get("_scripted")
        try:
            return super().__getattr__(name)
        except AttributeError:
            if scripted is None:
                raise
            return getattr(scripted, name)  # its constants


@contextlib.contextmanager
def unscripted(module: nn.Module) -> Iterator[None]:
    """Run submodules whose class is a ``ScriptModule`` as Python, as long as the block lasts.

    Raises:
        MmgenError: there is TorchScript whose Python isn't known, of ``torch.jit.script`` or ``torch.jit.load``.
    """
    found = [(parent, name, child) for parent in module.modules() for name, child in parent.named_children()]
    scripted = [(p, n, c) for p, n, c in found if isinstance(c, torch.jit.ScriptModule)]
    outermost = [(p, n, c) for p, n, c in scripted if not isinstance(p, torch.jit.ScriptModule)]
    replaced = []
    try:
        for parent, name, child in outermost:
            setattr(parent, name, _as_python(child, name))
            replaced.append((parent, name, child))
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _as_python(scripted: Any, name: str) -> nn.Module:
    stubs = getattr(type(scripted), "_methods", {})
    if "forward" not in stubs:
        raise MmgenError(
            f"submodule {name} is TorchScript, which torch.export can't trace",
            remedy="give the Python module that it was made of",
        )
    return _Unscripted(scripted, {method: stub.original_method for method, stub in stubs.items()})
