"""The text-conditional transformer over codes: masked-token diffusion with the blocks of ``dit``.

As MaskGIT (Chang et al. 2022), without a timestep: the network sees how much is masked.  The text modulates every
block (adaLN) and is attended to.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmgen.export.networks.dit import Block, TextDiTConfig, TextEncoder, unpatched

CODE_WIDTH = 64  # of a code's embedding


class TokenDiT(nn.Module):
    """Codes int64 (B, H, W), the mask being one past the last, and text vectors (B, T, D) to logits (B, C, H, W).

    ``config.latent_shape`` is (C codes, H, W): the shape of the logits.
    """

    def __init__(self, config: TextDiTConfig) -> None:
        super().__init__()
        self.config = config
        codes, height, width = config.latent_shape
        self.grid = (height // config.patch, width // config.patch)
        positions = config.patch**2  # codes in a patch
        self.text = TextEncoder(config)
        self.embedding = nn.Embedding(codes + 1, CODE_WIDTH)
        self.patch_in = nn.Linear(CODE_WIDTH * positions, config.width)
        self.position = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], config.width))
        self.pooled = nn.Linear(config.text_width, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.modulation = nn.Linear(config.width, 2 * config.width)
        self.patch_out = nn.Linear(config.width, codes * positions)
        for layer in (self.modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, codes: Tensor, context: Tensor) -> Tensor:
        rows, columns = self.grid
        p = self.config.patch
        h = self.embedding(codes).unflatten(2, (columns, p)).unflatten(1, (rows, p))  # (B, rows, p, columns, p, E)
        h = h.transpose(2, 3).flatten(3).flatten(1, 2)  # (B, N, p p E)
        h = self.patch_in(h) + self.position
        c = F.silu(self.pooled(context[:, 0]))
        for block in self.blocks:
            h = block(h, c, context)
        shift, scale = self.modulation(c)[:, None].chunk(2, -1)
        return unpatched(self.patch_out(self.norm(h) * (1 + scale) + shift), self.grid, p)
