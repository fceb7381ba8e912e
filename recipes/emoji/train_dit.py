"""Train the text-conditional DiT on the codes of the trained VQ-VAE: ``python train_dit.py --data DIR --out DIR``.

Writes ``dit.pt`` as it goes and continues from it, ``dit.safetensors`` and
``tokenizer.json`` at the end, and a log line every 100 steps.
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from captions import draw, make_tokenizer
from data import fetch, load
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_vqvae import pictures

from mmgen.export.dit import TextDiT, TextDiTConfig
from mmgen.export.vqvae import VQVAE, VQVAEConfig


def load_vqvae(folder: Path) -> VQVAE:
    record = json.loads((folder / "vqvae.json").read_text())
    model = VQVAE(VQVAEConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}))
    model.load_state_dict(load_file(folder / "vqvae.safetensors"), strict=False)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def latents_of(model: VQVAE, images: Tensor) -> Tensor:
    """Quantised, normalised latents (N, D, h, w) of pictures (N, 3, H, W)."""
    z = torch.cat([model.lookup(model.nearest_codes(model.encode(b))) for b in images.split(64)])
    mean, std = (torch.tensor(v)[:, None, None] for v in (model.config.latents_mean, model.config.latents_std))
    return (z - mean) / std


def optimisers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the matrices inside blocks, AdamW for everything else."""
    inside = [p for n, p in model.named_parameters() if "blocks." in n and p.ndim == 2]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(inside, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: warm-up over 200 steps, constant, linear to zero over the last 40 %."""
    return min(1.0, (step + 1) / 200, (steps - step) / (0.4 * steps))


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
    config = TextDiTConfig()
    tokenizer = make_tokenizer(emoji, config.vocabulary, config.text_length)
    tokenizer.save(str(args.out / "tokenizer.json"))
    latents = latents_of(load_vqvae(args.out), pictures(emoji))
    # A skin-tone variant differs from its base in one colour: it is drawn a fifth as often.
    weight = np.array([1.0 if e.base == e.unified else 0.2 for e in emoji])
    weight /= weight.sum()

    model = TextDiT(config)
    shadow = TextDiT(config).requires_grad_(False)  # moving average of the weights, the model that is kept
    shadow.load_state_dict(model.state_dict())
    optimiser = optimisers(model, args.lr)
    start, checkpoint = 0, args.out / "dit.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        for o, saved in zip(optimiser, state["optimisers"], strict=True):
            o.load_state_dict(saved)
        random = np.random.default_rng(start)
        torch.manual_seed(start)
    print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {tokenizer.get_vocab_size()} tokens",
        flush=True,
    )

    def loss_of(x0: Tensor, noise: Tensor, s: Tensor, tokens: Tensor) -> Tensor:
        """Flow matching (Lipman et al. 2023): the velocity noise - x0 at x = (1 - s) x0 + s noise."""
        wide = s[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            out = model((1 - wide) * x0 + wide * noise, 1000 * s, model.text(tokens))
        return (out.float() - (noise - x0)).square().mean((1, 2, 3))

    step_loss = torch.compile(loss_of) if args.compile else loss_of
    clock, losses = time.perf_counter(), []
    for step in range(start, args.steps):
        for o in optimiser:
            for group in o.param_groups:
                group["lr"] = args.lr * schedule(step, args.steps)
        chosen = random.choice(len(emoji), args.batch, p=weight)
        encodings = tokenizer.encode_batch([draw(emoji[i], random) for i in chosen])
        tokens = torch.tensor([e.ids for e in encodings])
        x0 = latents[chosen]
        # Which picture it is, is decided where noise dominates: logit-normal times of mean 0.6
        # (Esser et al. 2024, eq. 19).
        s = torch.sigmoid(torch.randn(args.batch) + 0.6)
        loss = step_loss(x0, torch.randn_like(x0), s, tokens).mean()
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
    save_file(shadow.state_dict(), args.out / "dit.safetensors")
    (args.out / "dit.json").write_text(json.dumps(asdict(config), indent=1))


if __name__ == "__main__":
    main()
