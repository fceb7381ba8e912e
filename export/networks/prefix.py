"""A transformer with prefix attention: what is given attends to itself, what is made attends to both.

The same blocks run over both (as a prefix language model's, Raffel et al. 2020, sec. 3.2.1, but with no row of what is
made hidden from another).  As nothing given sees what is made, its keys and values are the same at every step and are
computed once.  What is made is also modulated, in every block, by one vector of what is given (adaLN, Peebles & Xie
2023, sec. 3.2): it learns what is meant much sooner than by attention alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.networks.dit import Mlp

HIDDEN = -1e4  # added to scores of keys that nobody may see; finite in half precision


class PrefixBlock(nn.Module):
    """Pre-norm self-attention and MLP, whose keys and values may be preceded by others.

    Both may be shifted, scaled and gated by a vector, which does nothing before training.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, modulated_by: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio)
        self.modulation = nn.Linear(modulated_by, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, bias: Tensor, before: Tensor | None = None, vector: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run over (B, N, D).

        Args:
            x: (B, N, D).
            bias: (B, M) added to the scores of all keys, 0 or ``HIDDEN``.
            before: keys and values (B, 2, M - N, D) in front of x's own; None: none.
            vector: (B, V) that modulates; None: nothing does.

        Returns:
            (B, N, D), and x's own keys and values (B, 2, N, D).
        """
        parts = [None] * 6 if vector is None else self.modulation(vector)[:, None].chunk(6, -1)  # (B, 1, D)
        q, k, v = self.qkv(_shifted(self.norm1(x), *parts[:2])).chunk(3, -1)
        own = torch.stack([k, v], 1)
        k, v = (own if before is None else torch.cat([before, own], 2)).unbind(1)
        x = x + _gated(self.proj(self._attention(q, k, v, bias)), parts[2])
        return x + _gated(self.mlp(_shifted(self.norm2(x), *parts[3:5])), parts[5]), own

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, H, N or M, D/H)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias[:, None, None]  # (B, H, N, M)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _shifted(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    return x if shift is None or scale is None else x * (1 + scale) + shift


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else x * (1 + gate)


class PrefixTransformer(nn.Module):
    """The blocks over what is given, then over what is made."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: int, modulated_by: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PrefixBlock(width, heads, mlp_ratio, modulated_by) for _ in range(layers))

    def given(self, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Run over what is given (B, P, D) with the bias (B, P): to (B, P, D), and keys and values (B, L, 2, P, D)."""
        kept = []
        for block in self.blocks:
            x, own = block(x, bias)
            kept.append(own)
        return x, torch.stack(kept, 1)

    def made(self, x: Tensor, keys_values: Tensor, bias: Tensor, vector: Tensor) -> Tensor:
        """Run over what is made (B, N, D).

        Args:
            x: (B, N, D).
            keys_values: (B, L, 2, P, D), what ``given`` returned for what is given.
            bias: (B, P), of what is given.
            vector: (B, V) that modulates every block.

        Returns:
            (B, N, D).
        """
        bias = F.pad(bias, (0, x.shape[1]))
        for block, before in zip(self.blocks, keys_values.unbind(1), strict=True):
            x, _ = block(x, bias, before, vector)
        return x
