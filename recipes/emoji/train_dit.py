"""Train the text-conditional DiT on the codes of the trained VQ-VAE: ``python train_dit.py --data DIR --out DIR``.

Writes ``tokenizer.json``, and ``dit.pt`` and ``dit.safetensors`` as ``training`` says.
"""

import torch
from captions import make_tokenizer
from data import fetch, load
from numpy.typing import NDArray
from torch import Tensor
from train_vqvae import load_vqvae, pictures
from training import arguments, train

from mmgen.export.networks.dit import TextDiT, TextDiTConfig
from mmgen.export.networks.vqvae import VQVAE


@torch.no_grad()
def latents_of(model: VQVAE, images: Tensor) -> Tensor:
    """Quantised, normalised latents (N, D, h, w) of pictures (N, 3, H, W)."""
    z = torch.cat([model.lookup(model.nearest_codes(model.encode(b))) for b in images.split(64)])
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.latents_mean, model.config.latents_std))
    return (z - mean) / std


def main() -> None:
    args = arguments(__doc__)
    torch.manual_seed(0)
    emoji = load(fetch(args.data))
    config = TextDiTConfig()
    tokenizer = make_tokenizer(emoji, config.vocabulary, config.text_length)
    tokenizer.save(str(args.out / "tokenizer.json"))
    latents = latents_of(load_vqvae(args.out), pictures(emoji))
    model = TextDiT(config)

    def error(x0: Tensor, noise: Tensor, s: Tensor, tokens: Tensor) -> Tensor:
        """Flow matching (Lipman et al. 2023): the velocity noise - x0 at x = (1 - s) x0 + s noise."""
        wide = s[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            out = model((1 - wide) * x0 + wide * noise, 1000 * s, model.text(tokens))
        return (out.float() - (noise - x0)).square().mean((1, 2, 3))

    if args.compile:
        error = torch.compile(error)

    def loss_of(chosen: NDArray, tokens: Tensor) -> Tensor:
        x0 = latents[chosen]
        # Which picture it is, is decided where noise dominates: logit-normal times of mean 0.6
        # (Esser et al. 2024, eq. 19).
        s = torch.sigmoid(torch.randn(len(chosen)) + 0.6)
        return error(x0, torch.randn_like(x0), s, tokens).mean()

    train("dit", model, loss_of, emoji, tokenizer, args)


if __name__ == "__main__":
    main()
