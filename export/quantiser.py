"""The nearest entry of a codebook (van den Oord et al. 2017, eq. 1), the same arithmetic for every VQ-VAE."""

from torch import Tensor, nn


class Quantiser(nn.Module):
    """A denoiser's latents (B, D, h, w) to codebook entries (B, D, h, w) and their int64 (B, h, w) indices.

    Denoisers work on normalised latents: z = std latents + mean is what the codebook is compared with.  As
    |z - e|^2 = |z|^2 - 2 z.e + |e|^2 and |z|^2 is the same for every entry, |e|^2 - 2 z.e is enough.  The first index
    wins a tie.
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
        z = (self.std * latents + self.mean).permute(0, 2, 3, 1)  # (B, h, w, D)
        distance = self.codebook.square().sum(1) - 2 * (z @ self.codebook.t())  # (B, h, w, K)
        codes = distance.argmin(-1)
        return nn.functional.embedding(codes, self.codebook).permute(0, 3, 1, 2), codes
