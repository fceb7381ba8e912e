"""Configuration and weight files, read with checks, and never as a pickle."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import as_text
from mmgen.runtime.storage.hashes import sha256


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MmgenError(f"{path} can't be read ({error.strerror})", remedy="copy the whole folder again") from error
    except ValueError as error:
        raise MmgenError(f"{path} is not JSON ({error})", remedy="copy the folder again") from error
    if not isinstance(record, dict):
        raise MmgenError(f"{path}", got=type(record).__name__, wanted="a JSON object")
    return record


def check_safetensors(path: Path) -> None:
    """Raise MmgenError unless a file is a whole safetensors file."""
    try:
        with as_text(path) as readable, safe_open(readable, framework="pt"):
            pass
    except OSError as error:
        raise MmgenError(f"{path} can't be read ({error.strerror or error})", remedy="copy it again") from error
    except SafetensorError as error:
        raise MmgenError(f"{path} is damaged or cut short ({error})", remedy="copy it again") from error


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Load all tensors of a file, by name, in the types they are stored in."""
    check_safetensors(path)
    with as_text(path) as readable, safe_open(readable, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors, as float32, into a module that wants exactly these names and shapes.

    Raises:
        MmgenError: a tensor is missing, unknown, of another shape, or not a floating-point one.
    """
    wanted = module.state_dict()
    hint = "the weights don't belong to this configuration"
    if missing := sorted(set(wanted) - set(tensors)):
        raise MmgenError(f"{what}: tensor {missing[0]!r} is missing ({len(missing)} are)", remedy=hint)
    if unknown := sorted(set(tensors) - set(wanted)):
        raise MmgenError(
            f"{what}: tensor {unknown[0]!r} has no place in the model ({len(unknown)} have none)", remedy=hint
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise MmgenError(
                f"{what}: tensor {name!r}", got=tuple(tensor.shape), wanted=tuple(wanted[name].shape), remedy=hint
            )
        if not tensor.is_floating_point():
            raise MmgenError(f"{what}: tensor {name!r}", got=tensor.dtype, wanted="a floating-point type")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def check_loaded(module: nn.Module, what: str) -> None:
    """Raise MmgenError if a parameter or buffer has no values: on the meta device, or of a lazy module not yet run."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    missing = [(name, tensor) for name, tensor in tensors if tensor.is_meta or is_lazy(tensor)]
    if missing:
        name, tensor = missing[0]
        lazy = is_lazy(tensor)
        raise MmgenError(
            f"{what}: tensor {name!r} has no values ({len(missing)} of {len(tensors)} have none)",
            got="a lazy module that was never run" if lazy else "the meta device",
            wanted="weights on the CPU",
            remedy="run the module once" if lazy else "load them with load_state_dict(..., assign=True)",
        )


def check_finite(module: nn.Module, what: str) -> None:
    """Raise MmgenError if a parameter or buffer holds NaN or infinity; of buffers, masks may hold minus infinity."""
    buffers = {name for name, _ in module.named_buffers()}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if not tensor.is_floating_point():
            continue
        if not bool((torch.isfinite(tensor) | ((tensor == -torch.inf) & (name in buffers))).all()):
            bad = "NaN" if bool(torch.isnan(tensor).any()) else "infinity"
            raise MmgenError(
                f"{what}: tensor {name!r}",
                got=bad,
                wanted="finite numbers",
                remedy="the checkpoint is broken; use an earlier one",
            )


def files_sha256(files: Iterable[Path]) -> str:
    """Hash the SHA-256 of each file, in the order of their paths."""
    return hashlib.sha256("".join(sha256(path) for path in sorted(files)).encode()).hexdigest()


def tensors_sha256(modules: Iterable[nn.Module]) -> str:
    """Hash names, types, shapes and bytes of all tensors of modules with SHA-256."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
