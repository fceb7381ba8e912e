"""Train the masked-token DiT on the codes of the trained VQ-VAE: ``python train_tokens.py --data DIR --out DIR``.

Its text encoder and blocks start from the trained flow model (``dit.safetensors``).  Writes ``tokens.pt`` as it goes
and continues from it, ``tokens.safetensors`` at the end, and a log line every 100 steps.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from captions import draw
from data import fetch, load
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from train_dit import load_vqvae, optimisers, schedule
from train_vqvae import pictures

from mmgen.export.dit import TextDiTConfig
from mmgen.export.token_dit import TokenDiT
from mmgen.export.vqvae import VQVAE


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--out", type=Path, default=Path("build/emoji"))
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the step: faster, needs a C++ compiler")
    args = parser.parse_args()
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    emoji = load(fetch(args.data))
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    vqvae = load_vqvae(args.out)
    codes = codes_of(vqvae, pictures(emoji))
    mask = vqvae.config.codes
    config = replace(TextDiTConfig(), latent_shape=(mask, *codes.shape[1:]))
    weight = np.array([1.0 if e.base == e.unified else 0.2 for e in emoji])
    weight /= weight.sum()

    model = TokenDiT(config)
    flow = load_file(args.out / "dit.safetensors")
    shared = {n: p for n, p in flow.items() if n.startswith(("text.", "blocks.", "pooled.", "position"))}
    left = model.load_state_dict(shared, strict=False)
    assert not left.unexpected_keys, left
    shadow = TokenDiT(config).requires_grad_(False)  # moving average of the weights, the model that is kept
    shadow.load_state_dict(model.state_dict())
    optimiser = optimisers(model, args.lr)
    start, checkpoint = 0, args.out / "tokens.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        for o, saved in zip(optimiser, state["optimisers"], strict=True):
            o.load_state_dict(saved)
        random = np.random.default_rng(start)
        torch.manual_seed(start)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)

    def loss_of(shown: Tensor, hidden: Tensor, target: Tensor, tokens: Tensor) -> Tensor:
        """Cross entropy of the hidden codes, averaged over them."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(shown, model.text(tokens))
        each = F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=0.02)
        return (each * hidden).sum() / hidden.sum()

    step_loss = torch.compile(loss_of) if args.compile else loss_of
    clock, losses = time.perf_counter(), []
    for step in range(start, args.steps):
        for o in optimiser:
            for group in o.param_groups:
                group["lr"] = args.lr * schedule(step, args.steps)
        chosen = random.choice(len(emoji), args.batch, p=weight)
        encodings = tokenizer.encode_batch([draw(emoji[i], random) for i in chosen])
        tokens = torch.tensor([e.ids for e in encodings])
        target = codes[chosen]
        shown, hidden = masked(target, mask)
        loss = step_loss(shown, hidden.float(), target, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimiser:
            o.step()
            o.zero_grad(set_to_none=True)
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(shadow.parameters()), list(model.parameters()), 1 - decay)
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            seconds = (time.perf_counter() - clock) / (step + 1 - start)
            print(f"step {step + 1} loss {np.mean(losses[-100:]):.4f} {seconds:.3f} s/step", flush=True)
        if (step + 1) % 500 == 0:
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "shadow": shadow.state_dict(),
                    "step": step + 1,
                    "optimisers": [o.state_dict() for o in optimiser],
                },
                partial,
            )
            partial.replace(checkpoint)
    save_file(shadow.state_dict(), args.out / "tokens.safetensors")
    (args.out / "tokens.json").write_text(json.dumps(asdict(config), indent=1))


if __name__ == "__main__":
    main()
