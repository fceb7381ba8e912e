"""Measure the exported bundle and write the model card: ``python evaluate.py BUNDLE --data DIR``.

Pictures come from the runtime, as a user gets them; only the judge, the VQ encoder, is torch.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from accuracy import Accuracy, measure
from data import fetch, held_out, load
from numpy.typing import NDArray
from torch import nn
from train_vqvae import evaluate as reconstruction
from train_vqvae import pictures

from mmgen.export.base import embedded
from mmgen.export.networks.vqvae import VQVAE
from mmgen.export.sources.checkpoint import text_to_picture
from mmgen.runtime import Generator
from mmgen.runtime import load as load_bundle
from mmgen.runtime.storage.process import Masked

FLOW = "flow matching"
MASKED = "masked-token diffusion over codes, 2 x 2 of them a token"
VARIETY = {MASKED: "\nOf each name it knows one picture: another seed changes few of its codes."}
STORAGE = {"int8": "int8 with a scale for each row of a matrix, the autoencoder and vectors as float16"}

CARD = """# {name}

Text to 64 x 64 Noto emoji: a VQ-VAE{shared} and a text-conditional DiT, {megabytes:.1f} MB, made from scratch by `recipes/emoji/`.

| | |
|---|---|
| autoencoder | {vqvae:.2f} M parameters, 4 x 4 pixels a code, {codes} codes of {dims} dimensions, learned by moving averages with revival of dead codes |
| denoiser | {dit:.2f} M parameters with its text encoder, {layers} layers x {width}, {tokens} image tokens, {process} |
| text | {vocabulary} words and characters, {length} tokens |
| weights | moving averages over training, stored as {storage} |
| trained on | {count} pictures of `emoji-datasource-google` 16.0.0 (Noto emoji), names and keywords of `emojilib` 4.0.3 |
| licence | Apache-2.0; the pictures are Noto Emoji's, Apache-2.0 |

## Measured

| what | figure |
|---|---|
| reconstruction of {held} held-out pictures (the autoencoder never saw them or their skin-tone variants) | {psnr:.2f} dB PSNR |
| codes in use, over all pictures | {used:.1%} |
| prompt accuracy over {captions} captions, nearest of {count} emoji in the encoder's feature space | top 1 {top1:.1%}, top 5 {top5:.1%} |

Prompt accuracy is of the exported {policy} bundle on {backend}, {solver}, {steps} steps, guidance {guidance:g}, seeds 0
to {seeds}; the captions are every {stride}th emoji's name in Unicode's order.  Missed (asked: got): {missed}.

## Limits

It has learned the names of these emoji, not language: words it never saw are spelt out letter by letter and mean
little to it.  Skin-tone variants were drawn a fifth as often as the others.{variety}
"""  # noqa: E501


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, default=Path("build/data"))
    parser.add_argument("--checkpoint", type=Path, help="what it was exported from; else the embedded one of its name")
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--solver")
    parser.add_argument("--card", action="store_true", help="write README.md into the checkpoint")
    args = parser.parse_args()
    emoji = load(fetch(args.data))
    with load_bundle(args.bundle) as generator:
        bundle, backend = generator.bundle, generator.backend
        folder = args.checkpoint or embedded.folder(bundle.name)
        record, vqvae, dit = text_to_picture.read(folder)
        vqvae.eval()

        images = pictures(emoji)
        hidden = torch.from_numpy(held_out(emoji))
        psnr, _ = reconstruction(vqvae, images[hidden])
        _, used = reconstruction(vqvae, images)
        print(f"reconstruction {psnr:.2f} dB over {int(hidden.sum())} held-out pictures, {used:.1%} of codes used")

        accuracy, seconds = prompts(generator, vqvae, emoji, args)
    print(f"top 1 {accuracy.top1:.1%}, top 5 {accuracy.top5:.1%} of {accuracy.captions}, {seconds:.0f} s")
    for asked, got in accuracy.missed:
        print(f"  {asked}: {got}")
    if not args.card:
        return
    defaults, config = bundle.defaults, record.denoiser
    process = MASKED if isinstance(record.process, Masked) else FLOW
    text = CARD.format(
        name=record.name, shared=f" (that of `{record.shared}`)" if record.shared else "",
        megabytes=sum(file.stat().st_size for file in folder.iterdir()) / 1e6,
        vqvae=parameters(vqvae), codes=record.autoencoder.codes, dims=record.autoencoder.code_dim,
        dit=parameters(dit), layers=config.layers, width=config.width,
        tokens=(config.latent_shape[1] // config.patch) ** 2,
        process=process, variety=VARIETY.get(process, ""),
        vocabulary=config.vocabulary, length=config.text_length, storage=STORAGE.get(record.storage, record.storage),
        count=len(emoji), held=int(hidden.sum()), psnr=psnr, used=used, captions=accuracy.captions,
        top1=accuracy.top1, top5=accuracy.top5, policy=bundle.precision.policy, backend=backend,
        solver=args.solver or defaults.solver, steps=args.steps or defaults.steps,
        guidance=args.guidance or defaults.guidance, seeds=-(-accuracy.captions // 8) - 1,
        stride=sum(e.base == e.unified for e in emoji) // accuracy.captions,
        missed="; ".join(f"{asked}: {got}" for asked, got in accuracy.missed) or "none",
    )  # fmt: skip
    (folder / "README.md").write_text(text)


def parameters(module: nn.Module) -> float:
    """Millions of numbers that are stored."""
    return sum(tensor.numel() for tensor in module.state_dict().values()) / 1e6


def prompts(generator: Generator, vqvae: VQVAE, emoji: list, args: argparse.Namespace) -> tuple[Accuracy, float]:
    clock = time.perf_counter()

    def generate(texts: list[str], seed: int) -> NDArray[np.uint8]:
        result = generator.generate(
            prompt=texts, seed=seed, guidance=args.guidance, steps=args.steps, solver=args.solver
        )
        return result.media

    return measure(vqvae, emoji, generate, args.captions), time.perf_counter() - clock


if __name__ == "__main__":
    main()
