"""How both denoisers are trained: Muon and AdamW, a rate that falls at the end, and a moving average of the weights."""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from captions import draw
from data import Emoji
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

Loss = Callable[[NDArray[np.int64], Tensor], Tensor]  # which pictures (B,), their captions' tokens (B, T) -> scalar


def arguments(description: str | None) -> argparse.Namespace:
    """Options of both trainers."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--out", type=Path, default=Path("build/emoji"))
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss: faster, needs a C++ compiler")
    return parser.parse_args()


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


def train(
    name: str, model: nn.Module, loss_of: Loss, emoji: list[Emoji], tokenizer: Tokenizer, args: argparse.Namespace
) -> None:
    """Train until ``args.steps``, from ``NAME.pt`` in ``args.out`` if it is there, which is written every 500 steps.

    A log line every 100 steps; at the end ``NAME.safetensors``, the average, and ``NAME.json``, the model's config.
    """
    # A skin-tone variant differs from its base in one colour: it is drawn a fifth as often.
    weight = np.array([1.0 if e.base == e.unified else 0.2 for e in emoji])
    weight /= weight.sum()
    shadow = copy.deepcopy(model).requires_grad_(False)  # moving average of the weights, the model that is kept
    optimiser = optimisers(model, args.lr)
    start, checkpoint = 0, args.out / f"{name}.pt"
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

    clock, losses = time.perf_counter(), []
    for step in range(start, args.steps):
        for o in optimiser:
            for group in o.param_groups:
                group["lr"] = args.lr * schedule(step, args.steps)
        chosen = random.choice(len(emoji), args.batch, p=weight)
        encodings = tokenizer.encode_batch([draw(emoji[i], random) for i in chosen])
        loss = loss_of(chosen, torch.tensor([e.ids for e in encodings]))
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
    save_file(shadow.state_dict(), args.out / f"{name}.safetensors")
    (args.out / f"{name}.json").write_text(json.dumps(asdict(model.config), indent=1))
