"""Train the VQ-VAE: ``python train_vqvae.py --data DIR --out DIR``.

Writes ``vqvae.pt`` (weights, optimiser state) as it goes and continues from it,
``vqvae.safetensors`` at the end, and a log line every 50 steps.
"""

import argparse
import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from data import fetch, held_out, load
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from mmgen.export.networks.vqvae import VQVAE, VQVAEConfig
from mmgen.runtime.files.json_records import from_json


def load_vqvae(folder: Path) -> VQVAE:
    """What ``main`` wrote."""
    config = from_json(VQVAEConfig, json.loads((folder / "vqvae.json").read_text()), str(folder / "vqvae.json"))
    model = VQVAE(config)
    model.load_state_dict(load_file(folder / "vqvae.safetensors"), strict=False)  # usage and sums are not needed
    return model.eval().requires_grad_(False)


def pictures(emoji) -> Tensor:
    """Float (N, 3, 64, 64) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack([e.picture for e in emoji])).permute(0, 3, 1, 2)
    return stacked.float() / 127.5 - 1


def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Half of them mirrored, all moved by up to 3 pixels over the white ground."""
    if torch.rand((), generator=generator) < 0.5:
        batch = batch.flip(-1)
    padded = F.pad(batch, (3, 3, 3, 3), value=1.0)
    y, x = torch.randint(0, 7, (2,), generator=generator).tolist()
    return padded[..., y : y + 64, x : x + 64]


@torch.no_grad()
def update_codebook(model: VQVAE, vectors: Tensor, codes: Tensor, decay: float, revive_below: float) -> int:
    """Moving averages of van den Oord et al. 2017, eq. 6-8.

    A code used less often than ``revive_below`` times a batch is put onto a random encoder output.  Returns how many
    were.
    """
    counts = torch.bincount(codes, minlength=model.usage.numel()).float()
    sums = torch.zeros_like(model.code_sum).index_add_(0, codes, vectors)
    model.usage.lerp_(counts, 1 - decay)
    model.code_sum.lerp_(sums, 1 - decay)
    dead = model.usage < revive_below
    n = int(dead.sum())
    if n:
        model.code_sum[dead] = vectors[torch.randint(0, len(vectors), (n,))]
        model.usage[dead] = 1.0
    model.codebook.copy_(model.code_sum / model.usage[:, None])
    return n


@torch.no_grad()
def evaluate(model: VQVAE, images: Tensor) -> tuple[float, float]:
    """Mean PSNR in dB over pictures (8-bit) and the share of codes that are used."""
    used = torch.zeros(model.config.codes, dtype=torch.bool)
    psnrs = []
    for batch in images.split(64):
        codes = model.nearest_codes(model.encode(batch))
        used[codes.flatten()] = True
        decoded = model.decode(model.lookup(codes)).clamp(-1, 1)
        error = (((decoded + 1) * 127.5).round() - ((batch + 1) * 127.5).round()).square().mean((1, 2, 3))
        psnrs += (10 * torch.log10(255**2 / error)).tolist()
    return sum(psnrs) / len(psnrs), used.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--out", type=Path, default=Path("build/emoji"))
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    emoji = load(fetch(args.data))
    hidden = torch.from_numpy(held_out(emoji))
    images = pictures(emoji)
    train, test = images[~hidden], images[hidden]
    base = torch.tensor([e.base == e.unified for e in emoji])
    test_base = images[hidden & base]
    # A variant differs from its base in one colour: it is drawn a third as often.
    weight = torch.where(base, 1.0, 1 / 3)[~hidden]

    config = VQVAEConfig()
    model = VQVAE(config)
    shadow = VQVAE(config)  # moving average of the weights, the model that is kept
    shadow.load_state_dict(model.state_dict())
    shadow.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    start, checkpoint = 0, args.out / "vqvae.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        model.usage, model.code_sum, start = state["usage"], state["code_sum"], state["step"]
        shadow.load_state_dict(state["shadow"])
        optimiser.load_state_dict(state["optimiser"])
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(train)} pictures", flush=True)
    clock = time.perf_counter()
    for step in range(start, args.steps):
        warm = min(1.0, (step + 1) / 100)
        rate = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        chosen = torch.multinomial(weight, args.batch, generator=generator)
        batch = augment(train[chosen], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(batch).float()
            codes = model.nearest_codes(latents.detach())
            quantised = model.lookup(codes)
            # Straight-through gradient; the first steps run without the bottleneck to let the codebook find its place.
            passed = latents if step < 150 else latents + (quantised - latents).detach()
            decoded = model.decode(passed).float()
        commitment = F.mse_loss(latents, quantised)
        loss = F.mse_loss(decoded, batch) + 0.05 * F.l1_loss(decoded, batch) + 0.1 * commitment
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        vectors = latents.detach().permute(0, 2, 3, 1).reshape(-1, config.code_dim)
        # Revival stops at two thirds, so that the end is spent on a codebook that stays.
        revived = update_codebook(model, vectors, codes.flatten(), 0.99, 0.1 if step < args.steps * 2 // 3 else 0.0)
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, current in zip(shadow.parameters(), model.parameters(), strict=True):
                kept.lerp_(current, 1 - decay)
            shadow.codebook.copy_(model.codebook)  # a moving average already
        if (step + 1) % 50 == 0:
            seconds = (time.perf_counter() - clock) / (step + 1 - start)
            figures = f"loss {loss.item():.4f} commitment {commitment.item():.4f} revived {revived}"
            print(f"step {step + 1} {figures} {seconds:.3f} s/step", flush=True)
        if (step + 1) % 500 == 0:
            psnr, used = evaluate(shadow, test)
            psnr_base, _ = evaluate(shadow, test_base)
            _, used_train = evaluate(shadow, train[:1800])
            figures = f"{psnr:.2f} dB, base emoji {psnr_base:.2f} dB; codes used {used:.3f}"
            print(f"step {step + 1} held out: {figures}, on the training set {used_train:.3f}", flush=True)
            partial = checkpoint.with_suffix(".partial")
            torch.save(
                {
                    "model": model.state_dict(),
                    "shadow": shadow.state_dict(),
                    "usage": model.usage,
                    "code_sum": model.code_sum,
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                },
                partial,
            )
            partial.replace(checkpoint)
    with torch.no_grad():
        z = torch.cat([shadow.lookup(shadow.nearest_codes(shadow.encode(b))) for b in images.split(64)])
    config = replace(
        config, latents_mean=tuple(z.mean((0, 2, 3)).tolist()), latents_std=tuple(z.std((0, 2, 3)).tolist())
    )
    save_file({k: v.contiguous() for k, v in shadow.state_dict().items()}, args.out / "vqvae.safetensors")
    (args.out / "vqvae.json").write_text(json.dumps(asdict(config), indent=1))


if __name__ == "__main__":
    main()
