"""Put the trained parts together as embedded checkpoints: ``python pack.py --out DIR [--to FOLDER]``."""

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file
from train_vqvae import load_vqvae

from mmgen.export.base import embedded
from mmgen.export.networks.dit import TextDiT, TextDiTConfig
from mmgen.export.networks.token_dit import TokenDiT
from mmgen.export.networks.vqvae import VQVAE
from mmgen.export.sources.checkpoint.text_to_picture import Checkpoint, save
from mmgen.runtime.files.json_records import from_json
from mmgen.runtime.solvers.options import Option
from mmgen.runtime.storage.process import Flow, Masked
from mmgen.runtime.storage.schema import Defaults

PROMPTS = ("red apple", "rocket", "sunflower", "tiger face", "grinning face", "pizza", "snowman", "red heart")
NAMES = ("emoji", "emoji-tokens")  # in this order: the second shares the first one's autoencoder and tokenizer


def trained(name: str, out: Path, vqvae: VQVAE) -> tuple[Checkpoint, TextDiT | TokenDiT]:
    """A checkpoint's record and its denoiser, from what the trainers wrote."""
    file = out / ("tokens" if name == "emoji-tokens" else "dit")
    config = from_json(TextDiTConfig, json.loads(file.with_suffix(".json").read_text()), f"{file}.json")
    codes = vqvae.config.codes
    if name == "emoji-tokens":
        dit: TextDiT | TokenDiT = TokenDiT(config)
        process: Flow | Masked = Masked(codes=codes, mask_id=codes)
        shared = "emoji"
        options: dict[str, Option] = {"temperature": 1.0, "sampling_temperature": 0.7}
        defaults = Defaults(solver="maskgit", steps=16, guidance=1.0, solver_options=options)
    else:
        dit = TextDiT(config)
        process = Flow(noise_time=1, velocity="noise-data", timestep_scale=1000.0)
        defaults, shared = Defaults(solver="flow-euler", steps=20, guidance=4.0), ""
    dit.load_state_dict(load_file(file.with_suffix(".safetensors")))
    record = Checkpoint(
        name=name,
        licence="Apache-2.0",
        process=process,
        defaults=defaults,
        autoencoder=vqvae.config,
        denoiser=config,
        examples=PROMPTS,
        storage="int8",
        shared=shared,
    )
    return record, dit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=NAMES, help="one of them")
    parser.add_argument("--out", type=Path, default=Path("build/emoji"), help="where the trainers wrote")
    parser.add_argument("--to", type=Path, default=embedded.checkpoints())
    args = parser.parse_args()
    vqvae = load_vqvae(args.out)
    args.to.mkdir(parents=True, exist_ok=True)
    for name in (args.only,) if args.only else NAMES:
        record, dit = trained(name, args.out, vqvae)
        save(args.to / name, record, vqvae, dit, (args.out / "tokenizer.json").read_bytes())
        size = sum(file.stat().st_size for file in (args.to / name).iterdir())
        print(f"{args.to / name}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
