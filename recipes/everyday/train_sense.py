"""Train a sense before the network: ``python train_sense.py picture|sound [--minutes 20]``.

What it turns a medium into must, averaged over places, tell which of all emoji the medium is of; and that of speech, in
its order, which phonemes are said.  That costs half of a
step of the network, and without it the network sees nothing in pictures for its first hours.  Goes on from
``sense_KIND.pt``; ``train.py`` starts from what it wrote.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from speech import phonemes
from tasks import choose, seen, still, varied
from torch import Tensor, nn
from torch.nn import functional as F
from world import World

from mmgen.export.networks.any_to_any import AnyToAnyConfig
from mmgen.export.networks.senses import PictureSense, SoundSense

TEMPERATURE = 0.07
BATCH = 48
Draw = Callable[[np.random.Generator, bool, int], tuple[Tensor, Tensor]]  # media, and which emoji they are of


def draw_pictures(world: World) -> Draw:
    def draw(random: np.random.Generator, held_out: bool, count: int) -> tuple[Tensor, Tensor]:
        chosen, pictures, _ = choose(world, random, held_out, count)
        return still(pictures) if held_out else seen(varied(pictures, random), random), torch.from_numpy(chosen)

    return draw


def draw_sounds(world: World) -> Draw:
    def draw(random: np.random.Generator, held_out: bool, count: int) -> tuple[Tensor, Tensor]:
        speech = world.speech["heldout" if held_out else "train"]
        chosen = random.choice(len(world.names), count, replace=False)
        clips = [speech.heard(int(i), random, varied=not held_out) for i in chosen]
        return torch.from_numpy(np.stack(clips)), torch.from_numpy(chosen)

    return draw


class Phonemes(nn.Module):
    """Tells the phonemes of names from vectors over time, without being told when each is heard."""

    def __init__(self, spelt: list[str], width: int) -> None:
        super().__init__()
        number = {letter: i + 1 for i, letter in enumerate(sorted(set("".join(spelt))))}  # 0: none
        rows = [torch.tensor([number[letter] for letter in name]) for name in spelt]
        self.lengths = torch.tensor([len(row) for row in rows])
        self.targets = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.head = nn.Linear(width, len(number) + 1)

    def loss(self, vectors: Tensor, names: Tensor) -> Tensor:
        """Connectionist temporal classification (Graves et al. 2006) of (B, T, D), for each phoneme."""
        logits = self.head(vectors).log_softmax(-1).transpose(0, 1)  # (T, B, phonemes)
        times = torch.full_like(names, len(logits))
        return F.ctc_loss(logits, self.targets[names], times, self.lengths[names], zero_infinity=True)


def sensed(sense: nn.Module, media: Tensor) -> Tensor:
    """Vectors (B, n, D)."""
    with torch.autocast("cpu", torch.bfloat16):
        return sense(media).float()


def likeness(proxies: Tensor, vectors: Tensor) -> Tensor:
    """Logits (B, names)."""
    return F.normalize(vectors.mean(1), dim=-1) @ F.normalize(proxies, dim=-1).t() / TEMPERATURE


@torch.no_grad()
def found(sense: nn.Module, proxies: Tensor, draw: Draw, held_out: bool, count: int = 384) -> str:
    media, names = draw(np.random.default_rng(5), held_out, count)
    parts = [likeness(proxies, sensed(sense, part)) for part in media.split(BATCH)]
    order = torch.cat(parts).topk(5).indices == names[:, None]
    return f"{order[:, 0].float().mean():.1%}, in the first five {order.any(1).float().mean():.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("picture", "sound"))
    parser.add_argument("--minutes", type=float, default=20, help="of this run, by the clock")
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--last", action="store_true", help="let the rate fall to zero by the end of this run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path("build/everyday")
    world, width = World(folder), AnyToAnyConfig().width
    sense: nn.Module = PictureSense(width) if args.kind == "picture" else SoundSense(width)
    draw = draw_pictures(world) if args.kind == "picture" else draw_sounds(world)
    proxies = nn.Parameter(torch.randn(len(world.names), width))
    spoken = Phonemes(phonemes(folder, [n.name for n in world.names]), width) if args.kind == "sound" else None
    learnt = [*sense.parameters(), *(spoken.parameters() if spoken else ())]
    groups = [
        {"params": learnt, "lr": args.rate, "weight_decay": 0.05},
        {"params": [proxies], "lr": 5 * args.rate, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    start, state_file = 0, folder / f"sense_{args.kind}.pt"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        sense.load_state_dict(state["sense"])
        proxies.data.copy_(state["proxies"])
        if spoken:
            spoken.load_state_dict(state["phonemes"])
        optimiser.load_state_dict(state["optimiser"])
    torch.manual_seed(start)
    random = np.random.default_rng([start, 3])

    def save(step: int) -> None:
        partial = state_file.with_suffix(".partial")
        state = {"sense": sense.state_dict(), "proxies": proxies.data, "optimiser": optimiser.state_dict()}
        torch.save(state | {"phonemes": spoken and spoken.state_dict(), "step": step}, partial)
        partial.replace(state_file)

    began = said = time.monotonic()
    step, losses = start, list[float]()
    while (gone := time.monotonic() - began) < 60 * args.minutes:
        fall = min(1.0, 2.5 * (1 - gone / (60 * args.minutes)) + 0.01) if args.last else 1.0
        for group, peak in zip(optimiser.param_groups, (args.rate, 5 * args.rate), strict=True):
            group["lr"] = peak * min(1.0, (step + 1) / 100) * fall
        media, names = draw(random, False, BATCH)
        vectors = sensed(sense, media)
        loss = F.cross_entropy(likeness(proxies, vectors), names, label_smoothing=0.05)
        if spoken:
            loss = loss + spoken.loss(vectors, names)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sense.parameters(), 1.0)
        optimiser.step()
        step += 1
        losses.append(loss.item())
        if time.monotonic() - said > 120:
            said = time.monotonic()
            save(step)
            figures = f"trained on {found(sense, proxies, draw, False)}; held out {found(sense, proxies, draw, True)}"
            print(f"step {step} loss {np.mean(losses[-100:]):.3f}, {figures}", flush=True)
    save(step)


if __name__ == "__main__":
    main()
