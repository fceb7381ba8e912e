"""Buffers and parameters that a forward reads as Python values while it is traced.

``if self.ready:`` or ``int(self.padding)`` has one answer for a trained module, but torch traces with tensors that
have no values.  So the module runs once as it is, which shows what it reads and whether that depends on an input; the
traced run gets those answers where it doesn't.
"""

import contextlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from mmgen.export.base import origins

_Functions = frozenset[Callable[..., Any]]
READS: _Functions = frozenset({
    Tensor.__bool__, Tensor.__float__, Tensor.__index__, Tensor.__int__, Tensor.item, Tensor.tolist,
    torch.allclose, torch.equal, torch.is_nonzero, Tensor.allclose, Tensor.equal, Tensor.is_nonzero,
})  # fmt: skip  # what makes Python values of a tensor's

FACTORIES: _Functions = frozenset({torch.arange, torch.full, torch.linspace, torch.ones, torch.zeros})
NUMBERED: _Functions = FACTORIES | {
    Tensor.__getitem__, Tensor.__setitem__, Tensor.expand, Tensor.narrow, Tensor.new_full, Tensor.new_ones,
    Tensor.new_zeros, Tensor.repeat, Tensor.reshape, Tensor.roll, Tensor.split, Tensor.unflatten, Tensor.view,
    nn.functional.interpolate, nn.functional.pad, torch.narrow, torch.reshape, torch.roll, torch.split,
}  # fmt: skip  # what takes sizes and positions as numbers, or as tensors of one number; all arguments but the first

Site = tuple[str, int]  # file, line
Answers = Mapping[Site, list[Any]]  # in the order of the calls there; ``_VARIES`` where it depends on an input


class _Varies:
    """An answer that depends on the inputs."""


_VARIES = _Varies()


@contextlib.contextmanager
def constants_known(module: nn.Module, inputs: tuple[Tensor, ...]) -> Iterator[None]:
    """Answer what a module reads of its own tensors with their values, as long as the block lasts."""
    reads: defaultdict[Site, list[Any]] = defaultdict(list)
    varying = _Varying(inputs)
    with torch.no_grad(), _Recording(reads, varying), varying:
        module(*inputs)
    if not any(answer is not _VARIES for answers in reads.values() for answer in answers):
        yield
        return
    with _Answering(reads):
        yield


class _Varying(TorchDispatchMode):
    """Follows which tensors are computed from the inputs."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._varying: Any = WeakIdKeyDictionary()
        self._add(inputs)

    def __contains__(self, tensor: object) -> bool:
        return tensor in self._varying

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        leaves = _tensors((args, kwargs))
        if any(leaf in self._varying for leaf in leaves):
            self._add(out)
            if func._schema.is_mutable:
                self._add((args, kwargs))
        return out

    def _add(self, tree: object) -> None:
        for tensor in _tensors(tree):
            self._varying[tensor] = True


class _Recording(TorchFunctionMode):
    def __init__(self, reads: defaultdict[Site, list[Any]], varying: _Varying) -> None:
        super().__init__()
        self._reads, self._varying = reads, varying

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NUMBERED:
            for number in _numbers(_operands(func, args)[1], kwargs):
                self._reads[_site()].append(_VARIES if number in self._varying else number.item())
        out = func(*args, **(kwargs or {}))
        if func in READS:
            varies = any(tensor in self._varying for tensor in _tensors((args, kwargs)))
            answers = tree_leaves(out)  # tensors that are traced with answer ``tolist`` number by number
            self._reads[_site()] += [_VARIES] * len(answers) if varies else answers
        return out


class _Answering(TorchFunctionMode):
    def __init__(self, reads: Answers) -> None:
        super().__init__()
        self._reads = {site: iter(answers) for site, answers in reads.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in NUMBERED:
            kept, rest = _operands(func, args)
            args, kwargs = (*kept, *_replaced(rest, self._answer)), _replaced(kwargs or {}, self._answer)
        answer = self._answer(None) if func in READS else None
        return func(*args, **(kwargs or {})) if answer is None else answer

    def _answer(self, otherwise: Any) -> Any:
        """Return the next answer where a function is called now; ``otherwise`` where it depends on the inputs."""
        answer = next(self._reads.get(_site(), iter(())), _VARIES)
        return otherwise if answer is _VARIES else answer


def _site() -> Site:
    """Find where a function is called: the innermost line outside torch."""
    frame = sys._getframe(2)
    innermost = frame
    while frame.f_back is not None and not origins.is_users(frame.f_code.co_filename):
        frame = frame.f_back
    found = frame if origins.is_users(frame.f_code.co_filename) else innermost
    return found.f_code.co_filename, found.f_lineno


def _numbers(*trees: object) -> list[Tensor]:
    """List the tensors of one whole number among arguments, in order."""
    found: list[Tensor] = []

    def take(number: Tensor) -> Tensor:
        found.append(number)
        return number

    _replaced(trees, take)
    return found


def _operands(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Split arguments into those that are used as tensors, and the others."""
    return ((), args) if func in FACTORIES else (args[:1], args[1:])


def _replaced(tree: Any, replace: Callable[[Tensor], Any]) -> Any:
    """Replace each tensor of one whole number in arguments, also inside slices."""
    match tree:
        case Tensor() if tree.ndim == 0 and not tree.is_floating_point() and tree.dtype != torch.bool:
            return replace(tree)
        case tuple() | list():
            return type(tree)(_replaced(item, replace) for item in tree)
        case dict():
            return {key: _replaced(item, replace) for key, item in tree.items()}
        case slice():
            return slice(*(_replaced(part, replace) for part in (tree.start, tree.stop, tree.step)))
    return tree


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
