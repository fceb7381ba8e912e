"""The nearest entry of a codebook (van den Oord et al. 2017, eq. 1), the same arithmetic for every VQ-VAE."""

import math

from torch import Tensor, nn

FEW = 16  # entries in a block, below which to search in two stages isn't worth it


def nearest_codes(z: Tensor, codebook: Tensor) -> Tensor:
    """Find the index int64 (B, h, w) of the entry of a codebook (K, D) nearest to each of (B, D, h, w), in float32.

    As |z - e|^2 = |z|^2 - 2 z.e + |e|^2 and |z|^2 is the same for every entry, |e|^2 - 2 z.e is enough.  The first
    index wins a tie.
    """
    codebook = codebook.float()
    distance = codebook.square().sum(1) - 2 * (z.float().permute(0, 2, 3, 1) @ codebook.t())  # (B, h, w, K)
    return first_smallest(distance)


def first_smallest(x: Tensor) -> Tensor:
    """Find the index int64 (...) of the smallest of (..., K), the first of equal ones, as ``x.argmin(-1)``.

    Runtimes find a minimum several times as fast as its position.  So the minima of about sqrt(K) blocks are found
    first, then the position of the smallest among them, and its position in its block.
    """
    total = x.shape[-1]
    size = next(n for n in range(math.isqrt(total), 0, -1) if total % n == 0)
    if size < FEW:
        return x.argmin(-1)
    blocks = x.unflatten(-1, (-1, size))  # (..., K / size, size)
    block = blocks.amin(-1).argmin(-1, keepdim=True)  # (..., 1)
    inside = blocks.gather(-2, block.unsqueeze(-1).expand(*block.shape, size)).squeeze(-2)  # (..., size)
    return block.squeeze(-1) * size + inside.argmin(-1)


class Quantiser(nn.Module):
    """A denoiser's latents (B, D, h, w) to codebook entries (B, D, h, w) and their int64 (B, h, w) indices.

    Denoisers work on normalised latents: z = std latents + mean is what the codebook is compared with.
    """

    codebook: Tensor  # (K, D)
    mean: Tensor  # (D, 1, 1)
    std: Tensor  # (D, 1, 1)

    def __init__(self, codebook: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook.detach().float())
        self.register_buffer("mean", mean.float().reshape(-1, 1, 1))
        self.register_buffer("std", std.float().reshape(-1, 1, 1))

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        codes = nearest_codes(self.std * latents + self.mean, self.codebook)
        return nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2), codes


class CodesEncoder(nn.Module):
    """The input of ``encoder`` to the codes int64 (B, h, w) nearest to its output (B, D, h, w)."""

    codebook: Tensor  # (K, D)

    def __init__(self, encoder: nn.Module, codebook: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("codebook", codebook.detach())

    def forward(self, media: Tensor) -> Tensor:
        return nearest_codes(self.encoder(media), self.codebook)


class CodesDecoder(nn.Module):
    """Codes int64 (B, h, w) to the output of ``decoder`` for their entries (B, D, h, w)."""

    codebook: Tensor  # (K, D)

    def __init__(self, decoder: nn.Module, codebook: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("codebook", codebook.detach())

    def forward(self, codes: Tensor) -> Tensor:
        out: Tensor = self.decoder(nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2))
        return out
