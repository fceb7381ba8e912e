"""Train the masked-token DiT on the codes of the trained VQ-VAE: ``python train_tokens.py --data DIR --out DIR``.

Its text encoder and blocks start from the trained flow model (``dit.safetensors``).  Writes ``tokens.pt`` and
``tokens.safetensors`` as ``training`` says.
"""

import math
from dataclasses import replace

import torch
from data import fetch, load
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from train_vqvae import load_vqvae, pictures
from training import arguments, train

from mmgen.export.networks.dit import TextDiTConfig
from mmgen.export.networks.token_dit import TokenDiT
from mmgen.export.networks.vqvae import VQVAE


@torch.no_grad()
def codes_of(model: VQVAE, images: Tensor) -> Tensor:
    """Codes int64 (N, h, w) of pictures (N, 3, H, W)."""
    return torch.cat([model.nearest_codes(model.encode(b)) for b in images.split(64)])


def masked(codes: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    """Codes with a share hidden, and where: the share is cos(pi u / 2), u uniform (Chang et al. 2022, section 3.3)."""
    share = torch.cos(torch.rand(len(codes)) * math.pi / 2).clamp_min(1 / codes[0].numel())
    order = torch.rand(codes.shape).flatten(1).argsort(1).argsort(1)
    hidden = (order < (share * codes[0].numel()).ceil()[:, None]).view_as(codes)
    return torch.where(hidden, mask, codes), hidden


def main() -> None:
    args = arguments(__doc__)
    torch.manual_seed(0)
    emoji = load(fetch(args.data))
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    vqvae = load_vqvae(args.out)
    codes = codes_of(vqvae, pictures(emoji))
    mask = vqvae.config.codes

    model = TokenDiT(replace(TextDiTConfig(), latent_shape=(mask, *codes.shape[1:])))
    flow = load_file(args.out / "dit.safetensors")
    same = {n: p for n, p in flow.items() if n.startswith(("text.", "blocks.", "pooled.", "position"))}
    left = model.load_state_dict(same, strict=False)
    assert not left.unexpected_keys, left

    def error(shown: Tensor, hidden: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        """Cross entropy of the hidden codes, averaged over them."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(shown, model.text(tokens))
        each = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=0.02)
        return (each * hidden).sum() / hidden.sum()

    if args.compile:
        error = torch.compile(error)

    def loss_of(chosen: NDArray, tokens: Tensor) -> Tensor:
        target = codes[chosen]
        shown, hidden = masked(target, mask)
        return error(shown, hidden.float(), target, tokens)

    train("tokens", model, loss_of, emoji, tokenizer, args)


if __name__ == "__main__":
    main()
