"""Measure the trained network in torch: ``python evaluate.py [--tasks caption,draw] [--all]``."""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import jiwer
import numpy as np
import torch
from pictures import HELD_OUT
from safetensors.torch import load_file
from sampling import embed, make
from speech import clip_at
from tasks import TASKS, Batch, seen, still
from tokens import decode_made, encode_given
from torch import Tensor
from world import World

from mmgen.export.networks.any_to_any import AnyToAny, AnyToAnyConfig
from mmgen.runtime.files.json_records import from_json

TEXT_STEPS, PICTURE_STEPS = 4, 12


def load_network(folder: Path) -> AnyToAny:
    """What ``train.py`` wrote."""
    file = folder / "network.json"
    model = AnyToAny(from_json(AnyToAnyConfig, json.loads(file.read_text()), str(file)))
    model.load_state_dict(load_file(folder / "network.safetensors"))
    return model.eval().requires_grad_(False)


def share(right: list[bool]) -> str:
    return f"{np.mean(right):.1%} of {len(right)}"


def said(model: AnyToAny, world: World, batch: Batch) -> list[str]:
    """Texts that the network makes of what a batch gives."""
    return decode_made(world.tokenizer, make(model, "text", batch.text, batch.media, TEXT_STEPS))


def nearest(world: World, codes: Tensor, count: int = 1) -> list[list[str]]:
    """Names of the pictures that made codes (B, 16, 16) are nearest to, in the codec's latents, as a user sees them."""
    codec = world.picture_codec
    with torch.no_grad():
        shown = codec.decode(codec.lookup(codes)).clamp(-1, 1)
        latents = codec.encode(shown).flatten(1)
    order = torch.cdist(latents, world.picture_latents.flatten(1)).topk(count, largest=False).indices
    return [[world.names[i].name for i in row] for row in order.tolist()]


def found(model: AnyToAny, world: World, pictures: Tensor, names: list[int]) -> tuple[float, float]:
    """Recall at 1 and at 5 of all names for pictures."""
    texts = encode_given(world.tokenizer, [n.name for n in world.names])
    likeness = embed(model, "picture", pictures) @ embed(model, "text", texts).t()
    order = likeness.topk(5).indices
    right = order == torch.tensor(names)[:, None]
    return right[:, 0].float().mean().item(), right.any(1).float().mean().item()


def report_caption(model: AnyToAny, world: World, few: bool) -> str:
    """Exact names of Google's pictures, moved and scaled a little, and of each held-out vendor's as they are."""
    every = 10 if few else 1
    names = list(range(3, len(world.names), every))
    figures = []
    for vendor in ("google", *HELD_OUT):
        pictures = world.pictures[vendor][names]
        shown = seen(pictures, np.random.default_rng(0), 0.9) if vendor == "google" else still(pictures)
        right = []
        for start in range(0, len(names), 64):
            means = [world.names[i].name for i in names[start : start + 64]]
            made = make(model, "text", None, {"picture": shown[start : start + 64]}, TEXT_STEPS)
            right += [a == b for a, b in zip(decode_made(world.tokenizer, made), means, strict=True)]
        at1, at5 = found(model, world, shown, names)
        figures.append(f"{vendor} {share(right)}, found {at1:.1%} / {at5:.1%} in the first five")
    return "; ".join(figures)


def report_draw(model: AnyToAny, world: World, few: bool, task: str = "draw") -> str:
    right = []
    for seed in range(2 if few else 13):
        batch = TASKS[task](world, np.random.default_rng([seed, 5]), True, 16)
        made = make(model, "picture", batch.text, batch.media, PICTURE_STEPS, 0.7, seed)
        right += [a == b for [a], b in zip(nearest(world, made), batch.means, strict=True)]
    return share(right)


def report_text(model: AnyToAny, world: World, few: bool, task: str) -> str:
    """Exact answers, by kind of question where there are several, and the word error rate of speech."""
    by_kind, heard, meant = defaultdict(list), [], []
    for seed in range(3 if few else 16):
        batch = TASKS[task](world, np.random.default_rng([seed, 6]), True, 64)
        made = said(model, world, batch)
        heard += made
        meant += batch.means
        for kind, a, b in zip(batch.kinds or [""] * len(made), made, batch.means, strict=True):
            by_kind[kind].append(a == b)
    text = share([right for rights in by_kind.values() for right in rights])
    if len(by_kind) > 1:
        text += " (" + ", ".join(f"{kind} {np.mean(x):.0%}" for kind, x in sorted(by_kind.items())) + ")"
    if task == "listen":
        text += f", word error rate {jiwer.wer(meant, heard):.1%}"
    return text


def report_match(model: AnyToAny, world: World, few: bool) -> str:
    """How often a sound of the held-out half finds its name among all."""
    names = list(range(5, len(world.names), 20 if few else 2))
    speech = world.speech["heldout"]
    waves = (speech.wave(int(speech.of_name[i][0])) for i in names)
    sounds = torch.from_numpy(np.stack([clip_at(w, 0.5) for w in waves]))
    texts = encode_given(world.tokenizer, [n.name for n in world.names])
    likeness = embed(model, "sound", sounds, 32) @ embed(model, "text", texts).t()
    return share((likeness.argmax(1) == torch.tensor(names)).tolist())


def report(model: AnyToAny, world: World, tasks: list[str], few: bool) -> str:
    """Held-out figures of those tasks that have any."""
    figures = []
    for task in tasks:
        match task:
            case "caption":
                figures.append(f"caption: {report_caption(model, world, few)}")
            case "draw" | "imagine":
                figures.append(f"{task}: {report_draw(model, world, few, task)}")
            case "ask" | "listen" | "watch" | "read":
                figures.append(f"{task}: {report_text(model, world, few, task)}")
            case "match_sound":
                figures.append(f"sound finds its name: {report_match(model, world, few)}")
            case _:  # speak, animate and write are judged by ear and eye, or by other programs
                continue
    return "held out: " + "; ".join(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="caption,draw,ask")
    parser.add_argument("--all", action="store_true", help="all that is held out, in place of a part")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = Path("build/everyday")
    print(report(load_network(folder), World(folder), args.tasks.split(","), few=not args.all))


if __name__ == "__main__":
    main()
