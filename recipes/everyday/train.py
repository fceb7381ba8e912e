"""Train the any-to-any network: ``python train.py [--minutes 30] [--weights caption=3,draw=3]``.

Goes on from ``network.pt`` where it was stopped, whatever is asked of it now, and writes that file and
``network.safetensors`` (the average of the weights) every three minutes and at the end (or when it is told to stop),
and appends to ``network.log``.  With ``--last`` the rate falls to zero by the end of the run.  Started by ``torchrun
--nproc-per-node 2``, two processes have tasks of their own, and their gradients are averaged: more than two threads do.
"""

import argparse
import copy
import json
import os
import signal
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from evaluate import report
from safetensors.torch import save_file
from tasks import TASKS, Batch, Known, Match
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from world import World

from mmgen.export.networks.any_to_any import AnyToAny, AnyToAnyConfig

SIZES = defaultdict(lambda: 32, match_words=128, match=64, match_sound=48, match_film=24, name=256, look=96, voice=96)
SIZES |= dict.fromkeys(("draw", "speak", "listen"), 24) | dict.fromkeys(("imagine", "watch", "animate"), 16)
WEIGHTS = (  # of all tasks, by how much they need
    "draw=2,speak=2,caption=2,listen=2,imagine=0.5,ask=2,watch=1,animate=2,read=0.3,write=0.4,match=2,match_sound=2,"
    "match_film=1,match_ask=1,match_words=0.3,name=0.2,look=0.2,voice=0.2"
)
TASKS_A_STEP = 3
TRAINED = ("picture", "sound")  # by train_sense.py, and left as they are unless told
KNOWN_RATE = 10  # times the others': of what is known of a thing, which is a part of few batches


def optimisers(model: nn.Module, rate: float, sense_rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the matrices inside blocks, AdamW for everything else.

    What senses pictures and sound has a rate of its own: while the rest hardly knows anything, what it asks of them is
    noise, and at a fifth of its rate they forgot in an hour what they had been taught.
    """
    named = dict(model.named_parameters())
    inside = {n for n, p in named.items() if "blocks." in n and p.ndim == 2}
    senses = {n for n in named if n.partition(".")[0] in TRAINED}
    known = {n for n in named if n.startswith("memory.values.")}
    rest = [p for n, p in named.items() if n not in inside | senses | known]
    muon = torch.optim.Muon([named[n] for n in sorted(inside)], lr=rate, weight_decay=0.01,
                            adjust_lr_fn="match_rms_adamw")  # fmt: skip
    groups = [
        {"params": rest, "lr": rate, "weight_decay": 0.0},
        {"params": [named[n] for n in sorted(senses)], "lr": sense_rate, "weight_decay": 0.05},
        {"params": [named[n] for n in sorted(known)], "lr": KNOWN_RATE * rate, "weight_decay": 0.0},
    ]
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.98))]


def masked(target: Tensor, mask: int, by_cosine: bool) -> tuple[Tensor, Tensor]:
    """Codes with a random share replaced by the mask, and where: at least one place of each row.

    The share is cos(pi u / 2), u uniform (Chang et al. 2022, sec. 3.1), or u itself, as text's (Nie et al. 2025).
    """
    u = torch.rand(len(target), 1)
    share = (u * torch.pi / 2).cos() if by_cosine else u
    order = torch.rand(target.flatten(1).shape)
    hidden = order < torch.maximum(share, order.amin(1, keepdim=True) + 1e-6)
    hidden = hidden.view_as(target)
    return torch.where(hidden, mask, target), hidden


def loss_of(model: AnyToAny, batch: Batch | Match | Known) -> Tensor:
    """Cross entropy of masked codes, of what the memory alone says of codes, or of which emoji vectors are of.

    Every emoji has a key in the memory, to which words, pictures and sounds of it are drawn, as to a proxy
    (Movshovitz-Attias et al. 2017): so each is told from all the others, and not from those of a small batch alone.
    """
    with torch.autocast("cpu", torch.bfloat16):
        match batch:
            case Known():
                part, memory = model.output(batch.output), model.memory.values
                value = memory[model.config.outputs[batch.output].recalls][batch.names]
                logits, hidden = part.logits(part.position + part.recalled(value)), torch.ones_like(batch.target) > 0
            case Match():
                given = ({n: x if n == "text" else model.sense(n, x) for n, x in v.items()} for v in batch.views)
                likeness = [model.memory.likeness(model.embed(view)).float() for view in given]
                return torch.stack([F.cross_entropy(x, batch.names) for x in likeness]).mean()
            case Batch():
                given = {name: model.sense(name, medium) for name, medium in batch.media.items()}
                if batch.text is not None:
                    given["text"] = batch.text
                config = model.config.outputs[batch.output]
                shown, hidden = masked(batch.target, config.codes, by_cosine=batch.output != "text")
                logits = model.made(batch.output, shown, *model.given(given))
    logits = logits.permute(0, 2, 3, 1)[hidden].float()
    return F.cross_entropy(logits, batch.target[hidden], label_smoothing=0.02)


def averaged(parameters: list[nn.Parameter], stop: bool) -> bool:
    """Average gradients over all processes; return whether any of them wants to stop."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(part.flatten() for part in parts), torch.tensor([float(stop)])])
    distributed.all_reduce(flat)
    *gradients, stops = flat.split([*(p.numel() for p in parameters), 1])
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient.view_as(p).div_(distributed.get_world_size())
    return bool(stops.item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="of this run, by the clock")
    parser.add_argument("--weights", default=WEIGHTS, help="how often each task is drawn; tasks: " + ", ".join(TASKS))
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--sense-rate", type=float, default=0.0, help="of what train_sense.py trained; 0: none")
    parser.add_argument("--last", action="store_true", help="let the rate fall to zero by the end of this run")
    parser.add_argument("--report", type=float, default=12, help="minutes between reports")
    parser.add_argument("--senses", action="store_true", help="take what it wrote, as a new network does")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="the transformer's blocks, for runs of an hour or more")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if several := "WORLD_SIZE" in os.environ:
        distributed.init_process_group("gloo")
    rank = distributed.get_rank() if several else 0
    folder = Path("build/everyday")
    weights = {name: float(w) for name, w in (pair.split("=") for pair in args.weights.split(","))}
    tasks, shares = list(weights), np.array(list(weights.values())) / sum(weights.values())
    world = World(folder)
    model = AnyToAny(AnyToAnyConfig())
    for kind in TRAINED if not args.sense_rate else ():
        getattr(model, kind).requires_grad_(False)
    optimiser = optimisers(model, args.rate, args.sense_rate)
    shadow = copy.deepcopy(model).requires_grad_(False).eval()
    rates = [[group["lr"] for group in o.param_groups] for o in optimiser]
    state_file, start = folder / "network.pt", 0
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        for o, saved in zip(optimiser, state["optimisers"], strict=True):
            o.load_state_dict(saved)
    if args.senses or not start:
        for kind in TRAINED:
            if (file := folder / f"sense_{kind}.pt").is_file():
                for network in (model, shadow):
                    getattr(network, kind).load_state_dict(torch.load(file, weights_only=True)["sense"])
    if args.compile:
        for block in model.trunk.blocks:
            block.compile(dynamic=True)
    torch.manual_seed(start + rank)
    random = np.random.default_rng([start, 2, rank])
    log = (folder / "network.log").open("a")

    def say(text: str) -> None:
        if rank:
            return
        print(text, flush=True)
        print(text, file=log, flush=True)

    def save(step: int) -> None:
        if rank:
            return
        partial = state_file.with_suffix(".partial")
        state = {"model": model.state_dict(), "shadow": shadow.state_dict(), "step": step}
        torch.save(state | {"optimisers": [o.state_dict() for o in optimiser]}, partial)
        partial.replace(state_file)
        save_file({k: v.contiguous() for k, v in shadow.state_dict().items()}, folder / "network.safetensors")
        (folder / "network.json").write_text(json.dumps(asdict(shadow.config), indent=1))

    parameters = [p for p in model.parameters() if p.requires_grad]
    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    began = saved = reported = time.monotonic()
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, from step {start}: {args.weights}")
    step, losses = start, defaultdict(list)
    while not stopped:
        gone = time.monotonic() - began
        fall = min(1.0, 2.5 * (1 - gone / (60 * args.minutes)) + 0.01) if args.last else 1.0
        for o, peaks in zip(optimiser, rates, strict=True):
            for group, peak in zip(o.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1.0, (step + 1) / 200) * fall
        count = min(TASKS_A_STEP, len(tasks))
        for task in random.choice(tasks, count, replace=False, p=shares):
            loss = loss_of(model, TASKS[task](world, random, False, SIZES[task]))
            (loss / count).backward()
            losses[str(task)].append(loss.item())
        stopped |= gone > 60 * args.minutes
        if several:
            stopped = averaged(parameters, stopped)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in optimiser:
            o.step()
            o.zero_grad(set_to_none=True)
        decay = min(0.999, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(shadow.parameters()), list(model.parameters()), 1 - decay)
        step += 1
        now = time.monotonic()
        if now - saved > 180:
            saved = now
            save(step)
            means = " ".join(f"{task} {np.mean(x[-50:]):.3f}" for task, x in sorted(losses.items()))
            say(f"step {step} {(now - began) / (step - start):.2f} s/step, losses {means}")
        if now - reported > 60 * args.report and not rank:
            reported = now
            say(f"step {step} {report(shadow, world, tasks, few=True)}")
    save(step)
    if not rank:
        say(f"step {step} {report(shadow, world, tasks, few=True)}")


if __name__ == "__main__":
    main()
