"""Torch operators in ONNX, where the exporter's own translation is wrong, slow, or nothing that TensorRT takes."""

import itertools
import math
import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18

op: Any = opset18  # its annotations leave out the plain numbers that it takes
MASKED = -3e4  # added to the scores of masked keys; finite in half precision, and exp of it is 0
ELLIPSIS = "..."


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return translations by torch operator, as ``torch.onnx.export`` takes them."""
    aten = torch.ops.aten
    return {
        aten.scaled_dot_product_attention.default: attention,
        aten.gelu.default: gelu,
        aten.squeeze.default: squeeze,
        aten.squeeze.dim: squeeze,
        aten.squeeze.dims: squeeze,
        aten.einsum.default: einsum,
        aten._weight_norm_interface.default: weight_norm,
        **dict.fromkeys((aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar), shift_right),
        **dict.fromkeys((aten.__rshift__.Tensor, aten.bitwise_right_shift.Tensor), shift_right),
        **dict.fromkeys((aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar), shift_left),
        **dict.fromkeys((aten.__lshift__.Tensor, aten.bitwise_left_shift.Tensor), shift_left),
    }


def attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Translate ``aten::scaled_dot_product_attention``: softmax(q k^T scale + mask) v, operands (..., H, N, D).

    torch's own translation transposes the key with nine nodes of shape arithmetic and masks with a number that half
    precision doesn't have.  A query whose keys are all masked gives zero, as in torch.
    """
    rank, (queries, width), keys = len(query.shape), query.shape[-2:], key.shape[-2]
    if enable_gqa and (groups := query.shape[-3] // key.shape[-3]) > 1:  # each key head serves ``groups`` query heads
        key, value = (_repeat_heads(x, groups) for x in (key, value))
    transposed = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    factor = 1 / math.sqrt(width) if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.CastLike(factor, query)), transposed)
    seen = None
    if is_causal:
        bias = np.where(np.tri(queries, keys, dtype=bool), 0, MASKED).astype(np.float32)
        scores = op.Add(scores, op.CastLike(op.Constant(value=ir.tensor(bias)), scores))
    elif attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        scores = op.Add(scores, op.CastLike(op.Where(attn_mask, 0.0, MASKED), scores))
        seen = op.Cast(attn_mask, to=ir.DataType.FLOAT)
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
        seen = op.Cast(op.Greater(attn_mask, op.CastLike(-math.inf, attn_mask)), to=ir.DataType.FLOAT)
    out = op.MatMul(op.Softmax(scores, axis=-1), value)
    if seen is None:
        return out
    some = op.Greater(op.ReduceMax(seen, op.Constant(value_ints=[-1]), keepdims=1), 0.0)  # (..., N, 1)
    return op.Where(some, out, op.CastLike(0.0, out))


def gelu(x: Any, approximate: str = "none") -> Any:
    """Translate ``aten::gelu``: x/2 (1 + erf(x / sqrt 2)), or x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Torch's own translation halves the other factor, and ONNX Runtime doesn't know that as a GELU, of which it makes one
    operator.
    """
    if approximate == "tanh":
        cubed = op.Mul(op.Pow(x, op.CastLike(3.0, x)), op.CastLike(0.044715, x))
        inner = op.Tanh(op.Mul(op.Add(x, cubed), op.CastLike(math.sqrt(2 / math.pi), x)))
    else:
        inner = op.Erf(op.Div(x, op.CastLike(math.sqrt(2), x)))
    return op.Mul(op.Mul(x, op.CastLike(0.5, x)), op.Add(inner, op.CastLike(1.0, x)))


def _repeat_heads(x: Any, groups: int) -> Any:  # (R, H, N, D) -> (R, H groups, N, D)
    heads, width = x.shape[-3], x.shape[-1]
    repeated = op.Concat(*[op.Unsqueeze(x, [2])] * groups, axis=2)
    return op.Reshape(repeated, op.Constant(value_ints=[0, heads * groups, -1, width]))


def squeeze(x: Any, dim: int | Sequence[int] | None = None) -> Any:
    """Translate ``aten::squeeze``: axes not of size 1 stay, as does one of unknown size, which is the batch.

    ONNX's Squeeze fails on the former; without axes it would drop a batch of 1.
    """
    rank = len(x.shape)
    asked = range(rank) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = sorted({axis % rank for axis in asked if x.shape[axis] == 1}) if rank else []
    return op.Squeeze(x, op.Constant(value_ints=axes)) if axes else op.Identity(x)


def einsum(equation: str, tensors: Sequence[Any], path: Sequence[int] | None = None) -> Any:
    """Translate ``aten::einsum`` with every axis named and two factors at a time, as TensorRT needs.

    ``path``, the order that torch would multiply in, is not followed.
    """
    terms, output = _named(equation, [len(x.shape) for x in tensors])
    factors = [_without_ones(x, term, _sizes(terms, tensors)) for x, term in zip(tensors, terms, strict=True)]
    while len(factors) > 2:
        (left, a), (right, b), *rest = factors
        kept = "".join(sorted({*a, *b} & {*output, *itertools.chain(*(term for _, term in rest))}))
        factors = [(op.Einsum(left, right, equation=f"{a},{b}->{kept}"), kept), *rest]
    equation = f"{','.join(term for _, term in factors)}->{output}"
    return op.Einsum(*(x for x, _ in factors), equation=equation)


def _named(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the terms of an equation and its output, in small letters and without ellipses."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    used = sorted({*left} - {*",."})
    names = {letter: string.ascii_lowercase[i] for i, letter in enumerate(used)}
    open_axes = [rank - len(term.replace(ELLIPSIS, "")) for rank, term in zip(ranks, terms, strict=True)]
    more = max((n for n, term in zip(open_axes, terms, strict=True) if ELLIPSIS in term), default=0)
    extra = string.ascii_lowercase[len(used) : len(used) + more]
    if not arrow:  # what torch takes: the axes of the ellipsis, then what occurs once, in the alphabet's order
        output = (ELLIPSIS if more else "") + "".join(letter for letter in used if left.count(letter) == 1)

    def rename(term: str, count: int) -> str:
        named = "".join(extra[len(extra) - count :] if part == ELLIPSIS else names[part] for part in _parts(term))
        return named

    return [rename(*pair) for pair in zip(terms, open_axes, strict=True)], rename(output, more)


def _parts(term: str) -> list[str]:
    before, dots, after = term.partition(ELLIPSIS)
    return [*before, *([dots] if dots else []), *after]


def _sizes(terms: Sequence[str], tensors: Sequence[Any]) -> dict[str, Any]:
    """Return the size of each axis, 1 only where it is 1 everywhere."""
    sizes: dict[str, Any] = {}
    for term, x in zip(terms, tensors, strict=True):
        for letter, size in zip(term, x.shape, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    return sizes


def _without_ones(x: Any, term: str, sizes: dict[str, Any]) -> tuple[Any, str]:
    """Squeeze the axes of a factor along which it is broadcast."""
    axes = [i for i, letter in enumerate(term) if x.shape[i] == 1 and sizes[letter] != 1]
    kept = "".join(letter for i, letter in enumerate(term) if i not in axes)
    return (op.Squeeze(x, op.Constant(value_ints=axes)), kept) if axes else (x, term)


def weight_norm(v: Any, g: Any, dim: int = 0) -> tuple[Any, Any]:
    """Translate ``aten::_weight_norm_interface``: g v / |v| and |v|, over all axes but ``dim``.

    Salimans & Kingma 2016, eq. 2.  The norm over no axes is that of each number; torch's decomposition takes it for
    that over all.
    """
    axes = [axis for axis in range(len(v.shape)) if axis != dim % len(v.shape)]
    norm = op.ReduceL2(v, op.Constant(value_ints=axes), keepdims=1) if axes else op.Abs(v)
    return op.Mul(v, op.Div(g, norm)), norm


def shift_right(x: Any, bits: Any) -> Any:
    """Translate ``x >> bits`` of whole numbers, also of negative ones, as a division that rounds down."""
    divisor = _power_of_two(x, bits)
    return op.Div(op.Sub(x, op.Mod(x, divisor)), divisor)


def shift_left(x: Any, bits: Any) -> Any:
    """Translate ``x << bits`` of whole numbers."""
    return op.Mul(x, _power_of_two(x, bits))


def _power_of_two(like: Any, bits: Any) -> Any:
    if isinstance(bits, int):
        return op.CastLike(op.Constant(value_int=1 << bits), like)
    return op.CastLike(op.Pow(op.Constant(value_float=2.0), op.Cast(bits, to=ir.DataType.FLOAT)), like)
