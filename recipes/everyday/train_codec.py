"""Train the autoencoder of a medium: ``python train_codec.py sound|film|series [--minutes 20]``.

Goes on from ``KIND.pt`` where it was stopped, and writes the average of the weights, ``KIND.safetensors`` with
``KIND.json``, and a line with figures of held-out media every few minutes.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from films import FRAMES, MOTIONS, films
from pictures import LEARNT, load_pictures
from safetensors.torch import load_file, save_file
from speech import Speech, clip
from strokes import POINTS, WORDS, draw_writer, stroke
from torch import Tensor
from torch.nn import functional as F

from mmgen.export.networks.grouped_vqvae import GroupedVQVAE, GroupedVQVAEConfig, autoencoder_of
from mmgen.runtime.files.json_records import from_json

Draw = Callable[[np.random.Generator, bool, int], Tensor]  # a batch of media; of the held-out half; how many
FREE = 200  # first steps without the bottleneck, to let the codebook find its place


@dataclass(frozen=True)
class Kind:
    config: GroupedVQVAEConfig
    batch: int
    rate: float
    held_out: int  # how many media are measured


KINDS = {
    "sound": Kind(GroupedVQVAEConfig(places=64, groups=4, channels=160), 16, 1e-3, 64),
    "film": Kind(GroupedVQVAEConfig(places=64, groups=4, channels=96), 16, 1e-3, 64),
    "series": Kind(GroupedVQVAEConfig(places=POINTS // 4, groups=2, codes=256, channels=64), 64, 2e-3, 256),
}


def build(kind: str, config: GroupedVQVAEConfig) -> GroupedVQVAE:
    return autoencoder_of(kind, config, FRAMES, channels=2)


def load_codec(folder: Path, kind: str) -> GroupedVQVAE:
    """What ``main`` wrote."""
    file = folder / f"{kind}.json"
    model = build(kind, from_json(GroupedVQVAEConfig, json.loads(file.read_text()), str(file)))
    model.load_state_dict(load_file(folder / f"{kind}.safetensors"))
    return model.eval().requires_grad_(False)


def draw_sound(folder: Path) -> Draw:
    """Speech without noise; the plain voice, which is what will be spoken, a third of the time."""
    halves = {half: Speech(folder, half) for half in ("train", "plain", "heldout")}

    def draw(random: np.random.Generator, held_out: bool, count: int) -> Tensor:
        clips = []
        for _ in range(count):
            half = halves["heldout" if held_out else "plain" if random.random() < 0.33 else "train"]
            wave = half.wave(int(random.integers(len(half.table))))
            gain = random.uniform(0.4, 0.9) / max(0.01, np.abs(wave).max())
            clips.append(clip(wave * gain, 800 + (0 if held_out else int(random.integers(-600, 600)))))
        return torch.from_numpy(np.stack(clips))

    return draw


def draw_film(folder: Path) -> Draw:
    """Held out are the pictures of every 19th emoji, by all vendors."""
    sets = [load_pictures(folder, vendor) for vendor in LEARNT]
    sets = [(s, np.flatnonzero(s[..., 3].any((1, 2)))) for s in sets]

    def draw(random: np.random.Generator, held_out: bool, count: int) -> Tensor:
        chosen = []
        while len(chosen) < count:
            pictures, there = sets[0 if random.random() < 0.7 else int(random.integers(len(sets)))]
            i = int(random.choice(there))
            if (i % 19 == 0) == held_out:
                chosen.append(pictures[i])
        return films(np.stack(chosen), random.integers(len(MOTIONS), size=count).tolist(), random)

    return draw


def draw_series(_: Path) -> Draw:
    def draw(random: np.random.Generator, held_out: bool, count: int) -> Tensor:
        kinds = random.integers(len(WORDS), size=count)
        return torch.from_numpy(np.stack([stroke(int(k), draw_writer(random, held_out)) for k in kinds]))

    return draw


DRAWS = {"sound": draw_sound, "film": draw_film, "series": draw_series}


def loss_of(kind: str, decoded: Tensor, wanted: Tensor) -> Tensor:
    """Absolute errors of spectra, where a square would see the loudest alone; squares and a little of the others."""
    if kind == "sound":
        return F.l1_loss(decoded, wanted)
    return F.mse_loss(decoded, wanted) + 0.05 * F.l1_loss(decoded, wanted)


@torch.no_grad()
def figures(kind: str, model: GroupedVQVAE, media: Tensor) -> str:
    """Errors of held-out media, and the share of codes in use."""
    used = torch.zeros(model.config.codes, dtype=torch.bool)
    errors, psnrs = [], []
    for batch in media.split(16):
        prepared = model.prepared(batch)
        codes = model.nearest_codes(model.encode(prepared))
        used[codes.flatten()] = True
        decoded = model.decode(model.lookup(codes))
        errors.append((decoded - prepared).abs().mean().item())
        if kind == "film":
            psnrs += (10 * torch.log10(4 / (model.finished(decoded) - batch).square().mean((1, 2, 3, 4)))).tolist()
        if kind == "series":
            psnrs += (model.finished(decoded) - batch).square().sum(2).mean(1).sqrt().tolist()
    error = f"{8.686 * np.mean(errors):.2f} dB" if kind == "sound" else f"{np.mean(errors):.4f}"
    more = {"sound": "", "film": f", {np.mean(psnrs or 0):.2f} dB PSNR", "series": f", {np.mean(psnrs or 0):.4f} RMS"}
    return f"held out: mean error {error}{more[kind]}, codes used {used.float().mean():.3f}"


class Averages:
    """Codebook by moving averages (van den Oord et al. 2017, eq. 6-8), unused codes put onto random vectors."""

    def __init__(self, codebook: Tensor) -> None:
        self.usage, self.sums = torch.ones(len(codebook)), codebook.clone()

    def update(self, codebook: Tensor, vectors: Tensor, codes: Tensor, revive: bool) -> None:
        counts = torch.bincount(codes, minlength=len(codebook)).float()
        self.usage.lerp_(counts, 0.01)
        self.sums.lerp_(torch.zeros_like(self.sums).index_add_(0, codes, vectors), 0.01)
        dead = self.usage < (0.1 if revive else 0.0)
        if count := int(dead.sum()):
            self.sums[dead] = vectors[torch.randint(0, len(vectors), (count,))]
            self.usage[dead] = 1.0
        codebook.copy_(self.sums / self.usage[:, None].clamp(min=1e-6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--minutes", type=float, default=20, help="of this run, by the clock")
    parser.add_argument("--last", action="store_true", help="let the rate fall to zero by the end of this run")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder, kind = Path("build/everyday"), KINDS[args.kind]
    draw = DRAWS[args.kind](folder)
    model, shadow = (build(args.kind, kind.config) for _ in range(2))
    shadow.load_state_dict(model.state_dict())
    shadow.requires_grad_(False)
    averages = Averages(model.codebook)
    optimiser = torch.optim.AdamW(model.parameters(), lr=kind.rate, betas=(0.9, 0.95), weight_decay=0.01)
    start, state_file = 0, folder / f"{args.kind}.pt"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        start = state["step"]
        model.load_state_dict(state["model"])
        shadow.load_state_dict(state["shadow"])
        optimiser.load_state_dict(state["optimiser"])
        averages.usage, averages.sums = state["usage"], state["sums"]
    torch.manual_seed(start)
    random = np.random.default_rng([start, 1])
    test = draw(np.random.default_rng(0), True, kind.held_out)
    print(f"{args.kind}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)

    def save(step: int) -> None:
        partial = state_file.with_suffix(".partial")
        parts = {"model": model, "shadow": shadow, "optimiser": optimiser}
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save(state | {"usage": averages.usage, "sums": averages.sums, "step": step}, partial)
        partial.replace(state_file)
        save_file({k: v.contiguous() for k, v in shadow.state_dict().items()}, folder / f"{args.kind}.safetensors")
        (folder / f"{args.kind}.json").write_text(json.dumps(asdict(kind.config), indent=1))

    began = said = time.monotonic()
    step, losses = start, []
    while (gone := time.monotonic() - began) < 60 * args.minutes:
        share = gone / (60 * args.minutes)
        fall = min(1.0, 2 * (1 - share) + 0.01) if args.last else 1.0
        for group in optimiser.param_groups:
            group["lr"] = kind.rate * min(1.0, (step + 1) / 100) * fall
        prepared = model.prepared(draw(random, False, kind.batch))
        with torch.autocast("cpu", torch.bfloat16):
            latents = model.encode(prepared).float()
        codes = model.nearest_codes(latents.detach())
        quantised = model.lookup(codes)
        passed = latents if step < FREE else latents + (quantised - latents).detach()
        with torch.autocast("cpu", torch.bfloat16):
            decoded = model.decode(passed).float()
        loss = loss_of(args.kind, decoded, prepared) + 0.1 * F.mse_loss(latents, quantised)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            vectors = latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
            averages.update(model.codebook, vectors, codes.flatten(), revive=not (args.last and share > 0.5))
            decay = min(0.998, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(shadow.parameters()), list(model.parameters()), 1 - decay)
            shadow.codebook.copy_(model.codebook)
        step += 1
        losses.append(loss.item())
        if time.monotonic() - said > 150:
            said = time.monotonic()
            pace = (said - began) / (step - start)
            print(f"step {step} loss {np.mean(losses[-100:]):.4f} {pace:.2f} s/step", flush=True)
            print(f"step {step} {figures(args.kind, shadow, test)}", flush=True)
            save(step)
    save(step)
    print(f"step {step} {figures(args.kind, shadow, test)}", flush=True)


if __name__ == "__main__":
    main()
