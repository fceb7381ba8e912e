"""Write a checkpoint's model card from measured figures: ``python card.py [FOLDER]``."""

import argparse
import json
from pathlib import Path
from typing import Any

from mmgen.export.base import embedded

# What a row says, where its figure is in figures.json, what was set out to be reached (0: nothing), what is held out.
ROWS = (
    ("text to picture: the right one, nearest of all", "draw", "top 1", 0.97, "seeds"),
    ("picture to text: exact name, Noto moved and scaled a little", "caption", "google, exact", 0.97, "places, sizes"),
    ("… Twemoji's drawing, found among all names", "caption", "twemoji, found", 0.5, "the vendor"),
    ("… among the first five", "caption", "twemoji, in the first five", 0.7, "the vendor"),
    ("… OpenMoji's drawing, found among all names", "caption", "openmoji, found", 0.5, "the vendor"),
    ("… among the first five", "caption", "openmoji, in the first five", 0.7, "the vendor"),
    ("speech to text: word error rate, lower is better", "listen", "word error rate", 0.05, "voices, speeds"),
    ("… in rooms, most with noise or echoes", "listen", "word error rate, noisy", 0.0, "voices, speeds"),
    ("speech to picture: the right one, nearest of all", "imagine", "top 1", 0.9, "voices, speeds"),
    ("… in rooms, most with noise or echoes", "imagine", "top 1, noisy", 0.0, "voices, speeds"),
    ("text to speech: recognised by pocketsphinx", "speak", "recognised", 0.0, "–"),
    ("… espeak-ng's own speech", "speak", "espeak-ng recognised", 0.0, "–"),
    ("film to text: object", "watch", "object", 0.95, "pairs of object and motion"),
    ("… motion", "watch", "motion", 0.97, "pairs of object and motion"),
    ("text to film: motion, as seen by the row above", "animate", "motion", 0.95, "pairs of object and motion"),
    ("… object and motion", "animate", "exact", 0.9, "pairs of object and motion"),
    ("questions about pictures", "ask", "exact", 0.95, "other vendors' pictures"),
    ("text finds its picture", "retrieval", "text to picture", 0.95, "–"),
    ("picture finds its text", "retrieval", "picture to text", 0.95, "–"),
    ("speech finds its text", "retrieval", "sound to text", 0.95, "voices, speeds"),
    ("speech finds its picture", "retrieval", "sound to picture", 0.95, "voices, speeds"),
    ("stroke to text", "read", "exact", 0.95, "writers"),
    ("text to stroke, as read by the row above", "write", "read as meant", 0.95, "seeds"),
)
CARD = """# {name}

Any of text, 64 x 64 emoji, speech, films of emoji and strokes to any of them: one transformer over codes,
{megabytes:.1f} MB, made from scratch by `recipes/everyday/`.

| | |
|---|---|
| network | {layers} layers x {width}, prefix attention, adaLN by what is given as one vector, a memory of the names |
| makes | {outputs}, by unmasking codes |
| autoencoders | of pictures that of `emoji`; of sound, films and series their own |
| weights | moving averages over training, stored as int8 with a scale for each row of a matrix, vectors as float16 |
| trained on | 1,906 names; pictures of Noto, Fluent and Firefox OS emoji; speech of espeak-ng; films and strokes |
| licence | {licence}; the pictures are Apache-2.0 and MIT |

## Measured

On the exported fp16 bundle, ort-cpu. Held out is what the last column says; `recipes/everyday/figures.py` measures it.

| task | figure | wanted | held out |
|---|---|---|---|
{rows}

## Latency

One request for one thing on ort-cpu, two x86-64 cores, median of seven.

| task | seconds | evaluations |
|---|---|---|
{latency}

## Limits

It knows these names, not language, and one voice. Of each name it draws one picture, as Noto does. What is in no name,
such as an empty picture, silence or noise, it is to call "nothing".
"""


def rows(figures: dict[str, Any]) -> str:
    """Rows of the figures that were measured."""
    lines = []
    for what, task, figure, wanted, held_out in ROWS:
        if figure in figures.get(task, {}):
            aim = "" if not wanted else f"{'≤' if 'rate' in figure else '≥'} {wanted:.0%}"
            lines.append(f"| {what} | {figures[task][figure]:.1%} | {aim} | {held_out} |")
    return "\n".join(lines)


def latency(figures: dict[str, Any]) -> str:
    measured = figures.get("latency", {})
    tasks = [name for name in measured if f"{name}, evaluations" in measured]
    return "\n".join(f"| {task} | {measured[task]:.2f} | {measured[f'{task}, evaluations']:.0f} |" for task in tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=embedded.folder("everyday"))
    args = parser.parse_args()
    figures = json.loads(Path("build/everyday/figures.json").read_text())
    config = json.loads((args.folder / "config.json").read_text())
    text = CARD.format(
        name=config["name"],
        licence=config["licence"],
        megabytes=sum(file.stat().st_size for file in args.folder.iterdir()) / 1e6,
        layers=config["network"]["layers"],
        width=config["network"]["width"],
        outputs=", ".join(config["outputs"]),
        rows=rows(figures),
        latency=latency(figures),
    )
    (args.folder / "README.md").write_text(text)


if __name__ == "__main__":
    main()
