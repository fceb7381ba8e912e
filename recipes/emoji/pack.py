"""Put the trained parts together as the embedded default: ``python pack.py --out DIR [--to FOLDER]``."""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file
from train_dit import load_vqvae

from mmgen.export import sources
from mmgen.export.checkpoint import Checkpoint, save
from mmgen.export.dit import TextDiT, TextDiTConfig
from mmgen.runtime.bundle import Defaults, from_json
from mmgen.runtime.process import Flow

PROMPTS = ("red apple", "rocket", "sunflower", "tiger face", "grinning face", "pizza", "snowman", "red heart")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/emoji"), help="where the trainers wrote")
    parser.add_argument("--to", type=Path, default=sources.EMBEDDED)
    args = parser.parse_args()
    vqvae = load_vqvae(args.out)
    config = from_json(TextDiTConfig, json.loads((args.out / "dit.json").read_text()), str(args.out / "dit.json"))
    dit = TextDiT(config)
    dit.load_state_dict(load_file(args.out / "dit.safetensors"))
    checkpoint = Checkpoint(
        name="emoji",
        licence="Apache-2.0",
        process=Flow(noise_time=1, velocity="noise-data", timestep_scale=1000.0),
        defaults=Defaults(solver="flow-euler", steps=20, guidance=4.0),
        autoencoder=vqvae.config,
        denoiser=config,
        examples=PROMPTS,
    )
    args.to.parent.mkdir(parents=True, exist_ok=True)
    save(args.to, checkpoint, vqvae, dit, (args.out / "tokenizer.json").read_bytes())
    size = sum(f.stat().st_size for f in args.to.iterdir())
    print(f"{args.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
