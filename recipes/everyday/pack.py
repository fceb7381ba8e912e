"""Put the trained parts together as an embedded checkpoint: ``python pack.py [--to FOLDER]``.

Outputs whose autoencoder isn't trained yet are left out, with a line that says so.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from evaluate import load_network
from films import FRAMES, MOTIONS, films
from films import RATE as FRAME_RATE
from pictures import on_ground
from speech import RATE, SAMPLES, clip_at
from strokes import POINTS, stroke
from tokens import END
from torch import Tensor
from train_codec import load_codec
from world import World, as_bytes

from mmgen.export.base import embedded
from mmgen.export.sources.checkpoint.any_to_any import AnyToAnyCheckpoint, MadeRecord, Parts, save
from mmgen.runtime.storage.schema import Defaults, Media

MEDIA = {
    "text": Media("text", (16,), "int64", end_id=END),
    "picture": Media("image", (64, 64, 3), "uint8", (0.0, 255.0)),
    "sound": Media("audio", (SAMPLES, 1), "float32", (-1.0, 1.0), rate=RATE),
    "film": Media("video", (FRAMES, 64, 64, 3), "uint8", (0.0, 255.0), rate=FRAME_RATE),
    "series": Media("series", (POINTS, 2), "float32", rate=float(POINTS), labels=("x", "y")),
}
MADE = {  # defaults, and what it is made of
    "text": (Defaults("llada", 16, solver_options={"threshold": 0.9}), ("text", "picture", "sound", "film", "series")),
    "picture": (
        Defaults("maskgit", 12, guidance=1.5, solver_options={"temperature": 1.0, "sampling_temperature": 0.7}),
        ("text", "sound"),
    ),
    "sound": (Defaults("maskgit", 16, solver_options={"temperature": 1.0, "sampling_temperature": 0.5}), ("text",)),
    "film": (Defaults("maskgit", 12, solver_options={"temperature": 1.0, "sampling_temperature": 0.5}), ("text",)),
    "series": (Defaults("maskgit", 8, solver_options={"temperature": 1.0, "sampling_temperature": 0.7}), ("text",)),
}
EMBEDS = ("text", "picture", "sound")
TEXTS = ("red apple", "rocket", "cat face", "what colour is it", "pizza moving left", "small star", "sunflower")
SHOWN = ("red apple", "rocket", "cat face", "sunflower")


def examples(world: World) -> dict[str, Tensor]:
    """Media of each input, as files hold them."""
    chosen = [next(i for i, n in enumerate(world.names) if n.name == shown) for shown in SHOWN]
    pictures = torch.from_numpy(on_ground(world.pictures["google"][chosen]))
    speech = world.speech["plain"]
    waves = [speech.wave(i) for i in chosen]
    sounds = torch.from_numpy(np.stack([clip_at(w, 0.7) for w in waves]))[..., None]
    motions = [MOTIONS.index(m) for m in ("moving left", "turning right", "growing", "blinking")]
    made = films(world.pictures["google"][chosen], motions, np.random.default_rng(0))  # (B, T, 3, H, W)
    shown = torch.from_numpy(as_bytes(made.movedim(2, -1)))
    strokes = torch.from_numpy(np.stack([stroke(k, 2 * k) for k in (0, 9, 20, 33)]))
    return {"picture": pictures, "sound": sounds, "film": shown, "series": strokes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/everyday"), help="where the trainers wrote")
    parser.add_argument("--to", type=Path, default=embedded.folder("everyday"))
    args = parser.parse_args()
    world, network = World(args.out), load_network(args.out)
    trained = {kind for kind in ("sound", "film", "series") if (args.out / f"{kind}.safetensors").is_file()}
    outputs = {n: MadeRecord(MEDIA[n], *made) for n, made in MADE.items() if n in {"text", "picture"} | trained}
    if left_out := sorted(set(MADE) - set(outputs)):
        print(f"left out, as their autoencoders aren't trained: {', '.join(left_out)}")
    codecs = {kind: load_codec(args.out, kind) for kind in sorted(trained)}
    record = AnyToAnyCheckpoint(
        name="everyday",
        licence="Apache-2.0",
        network=network.config,
        picture=world.picture_codec.config,
        autoencoders={kind: codec.config for kind, codec in codecs.items()},
        inputs={name: media for name, media in MEDIA.items() if name != "text"},
        outputs=outputs,
        embeds=EMBEDS,
        texts=TEXTS,
        storage="int8",
        shared="emoji",
    )
    tokenizer = (args.out / "tokenizer.json").read_bytes()
    save(args.to, record, Parts(network, world.picture_codec, codecs), tokenizer, examples(world))
    size = sum(file.stat().st_size for file in args.to.iterdir())
    print(f"{args.to}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
