"""Measure an exported bundle, without torch in the loop: ``python figures.py BUNDLE [--tasks ...] [--count N]``.

Writes ``figures.json`` next to what it measured and prints a table.  Everything is held out as recipes/everyday's
README says; what is asked of the network is what ``tasks`` draws, what it makes comes from ``mmgen.runtime``.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from evaluate import nearest
from films import MOTIONS
from numpy.typing import NDArray
from pictures import HELD_OUT
from speech import clip_at, in_a_room
from strokes import WORDS
from tasks import TASKS, Batch, seen, still
from world import World, as_bytes

from mmgen.runtime import Generator, load

TOGETHER = 8  # requests at once
Figures = dict[str, Any]


def as_media(name: str, tensor: torch.Tensor) -> list[NDArray[Any]]:
    """What ``tasks`` has, as files hold it."""
    match name:
        case "picture":
            return list(as_bytes(tensor.movedim(1, -1)))
        case "film":
            return list(as_bytes(tensor.movedim(2, -1)))
        case "sound":
            return list(tensor[..., None].numpy())
        case _:
            return list(tensor.numpy())


def made(generator: Generator, output: str, given: dict[str, list[Any]], **options: Any) -> Iterator[Any]:
    """Yield results of a few requests at once, in order."""
    count = len(next(iter(given.values())))
    for start in range(0, count, TOGETHER):
        part = {name: values[start : start + TOGETHER] for name, values in given.items()}
        yield generator.generate(output, **part, **options)


def texts(generator: Generator, given: dict[str, list[Any]]) -> list[str]:
    return [text for result in made(generator, "text", given) for text in result.texts]


def given_by(world: World, batch: Batch) -> dict[str, list[Any]]:
    given = {name: as_media(name, medium) for name, medium in batch.media.items()}
    if batch.text is not None:
        given["text"] = world.tokenizer.decode_batch(batch.text.tolist())
    return given


def drawn(world: World, task: str, count: int) -> Batch:
    batch = TASKS[task](world, np.random.default_rng(11), True, count)
    assert isinstance(batch, Batch)
    return batch


def noisy(batch: Batch) -> Batch:
    """The same speech in rooms, most with noise or echoes."""
    random = np.random.default_rng(12)
    clips = [in_a_room(clip[: np.flatnonzero(clip)[-1] + 1], random) for clip in batch.media["sound"].numpy()]
    return replace(batch, media={"sound": torch.from_numpy(np.stack(clips))})


def share(right: list[bool]) -> float:
    return round(float(np.mean(right)), 4)


def measure_caption(generator: Generator, world: World, count: int) -> Figures:
    """Exact names of Google's pictures, moved and scaled a little, and of each vendor that wasn't learnt from."""
    names = np.linspace(0, len(world.names) - 1, count).astype(int)
    figures: Figures = {}
    for vendor in ("google", *HELD_OUT):
        pictures = world.pictures[vendor][names]
        shown = seen(pictures, np.random.default_rng(0), 0.9) if vendor == "google" else still(pictures)
        said = texts(generator, {"picture": as_media("picture", shown)})
        figures[f"{vendor}, exact"] = share([a == world.names[i].name for a, i in zip(said, names, strict=True)])
        order = (_embedded(generator, "picture", as_media("picture", shown)) @ _names(generator, world).T).argsort(1)
        figures[f"{vendor}, found"] = share((order[:, -1] == names).tolist())
        figures[f"{vendor}, in the first five"] = share((order[:, -5:] == names[:, None]).any(1).tolist())
    return figures


def _embedded(generator: Generator, name: str, values: list[Any]) -> NDArray[np.float32]:
    parts = (values[i : i + TOGETHER] for i in range(0, len(values), TOGETHER))
    return np.concatenate([generator.embed(**{name: part}) for part in parts])


def _names(generator: Generator, world: World) -> NDArray[np.float32]:
    return _embedded(generator, "text", [n.name for n in world.names])


def measure_drawn(task: str) -> Callable[[Generator, World, int], Figures]:
    """Pictures that are nearest, in the autoencoder's latents, to the one that was asked for, among all."""

    def measure(generator: Generator, world: World, count: int) -> Figures:
        batch = drawn(world, task, count)
        figures = {}
        for figure, asked in ({"top 1": batch} | ({"top 1, noisy": noisy(batch)} if task == "imagine" else {})).items():
            codes = [r.codes for r in made(generator, "picture", given_by(world, asked), seed=7)]
            found = nearest(world, torch.from_numpy(np.concatenate(codes)))
            figures[figure] = share([a == b for [a], b in zip(found, batch.means, strict=True)])
        return figures

    return measure


def measure_said(task: str) -> Callable[[Generator, World, int], Figures]:
    """Exact texts, by kind of question where there are several."""

    def measure(generator: Generator, world: World, count: int) -> Figures:
        batch = drawn(world, task, count)
        said = texts(generator, given_by(world, batch))
        right = [a == b for a, b in zip(said, batch.means, strict=True)]
        figures: Figures = {"exact": share(right)}
        kinds = defaultdict(list)
        for kind, each in zip(batch.kinds, right, strict=False):
            kinds[kind].append(each)
        figures |= {kind: share(each) for kind, each in sorted(kinds.items())}
        if task == "listen":
            figures["word error rate"] = round(jiwer.wer(batch.means, said), 4)
            heard = texts(generator, given_by(world, noisy(batch)))
            figures["word error rate, noisy"] = round(jiwer.wer(batch.means, heard), 4)
        if task == "watch":
            ends = [next(m for m in MOTIONS if b.endswith(m)) for b in batch.means]
            figures["motion"] = share([a.endswith(end) for a, end in zip(said, ends, strict=True)])
            objects = [b.removesuffix(end).strip() for b, end in zip(batch.means, ends, strict=True)]
            figures["object"] = share([a.startswith(o) for a, o in zip(said, objects, strict=True)])
        return figures

    return measure


def measure_films(generator: Generator, world: World, count: int) -> Figures:
    """What the network itself sees in the films that it made of sentences it never learnt."""
    batch = drawn(world, "animate", count)
    films = [film for r in made(generator, "film", {"text": batch.means}, seed=7) for film in r.media]
    said = texts(generator, {"film": films})
    ends = [next(m for m in MOTIONS if b.endswith(m)) for b in batch.means]
    return {
        "exact": share([a == b for a, b in zip(said, batch.means, strict=True)]),
        "motion": share([a.endswith(e) for a, e in zip(said, ends, strict=True)]),
    }


def measure_speech(generator: Generator, world: World, count: int) -> Figures:
    """How often pocketsphinx, with all names as its grammar, hears the right one: of the network and of espeak-ng."""
    from pocketsphinx import Decoder

    names = np.linspace(0, len(world.names) - 1, count).astype(int)
    known = Decoder(lm=None, loglevel="FATAL")
    grammar = [n.name for n in world.names if all(known.lookup_word(word) for word in n.name.split())]
    names = [i for i in names if world.names[i].name in set(grammar)]
    known.add_jsgf_string("names", "#JSGF V1.0; grammar names; public <name> = " + " | ".join(grammar) + ";")
    known.activate_search("names")

    def heard(sound: NDArray[np.float32]) -> str:
        known.start_utt()
        known.process_raw((sound * 32767).astype("<i2").tobytes(), full_utt=True)
        known.end_utt()
        return known.hyp().hypstr if known.hyp() else ""

    wanted = [world.names[i].name for i in names]
    sounds = [s for r in made(generator, "sound", {"text": wanted}, seed=7) for s in r.media[..., 0]]
    plain = world.speech["plain"]
    waves = [plain.wave(i) for i in names]
    espeak = [clip_at(wave, 0.7) for wave in waves]
    ours, theirs = (share([heard(s) == w for s, w in zip(x, wanted, strict=True)]) for x in (sounds, espeak))
    return {"recognised": ours, "espeak-ng recognised": theirs}


def measure_strokes(generator: Generator, world: World, count: int) -> Figures:
    """What the network itself reads in the strokes that it wrote."""
    wanted = [WORDS[i % len(WORDS)] for i in range(count)]
    strokes = [s for r in made(generator, "series", {"text": wanted}, seed=7) for s in r.media]
    said = texts(generator, {"series": strokes})
    return {"read as meant": share([a == b for a, b in zip(said, wanted, strict=True)])}


def measure_retrieval(generator: Generator, world: World, count: int) -> Figures:
    """Recall at 1, each way, among as many things."""
    names = np.linspace(0, len(world.names) - 1, count).astype(int)
    speech = world.speech["heldout"]
    waves = [speech.wave(int(speech.of_name[i][0])) for i in names]
    sounds = [clip_at(wave, 0.5)[:, None] for wave in waves]
    pictures = as_media("picture", still(world.pictures["google"][names]))
    vectors = {
        "text": _embedded(generator, "text", [world.names[i].name for i in names]),
        "picture": _embedded(generator, "picture", pictures),
        "sound": _embedded(generator, "sound", sounds),
    }
    right = np.arange(count)
    return {
        f"{a} to {b}": share(((x @ y.T).argmax(1) == right).tolist())
        for a, x in vectors.items()
        for b, y in vectors.items()
        if a != b
    }


def measure_latency(generator: Generator, world: World, count: int) -> Figures:
    """Seconds of one request for one thing, the median of seven after a first, and the evaluations that it took."""
    figures: Figures = {}
    for task in ("draw", "caption", "ask", "listen", "imagine", "speak", "watch", "animate", "read", "write"):
        batch = drawn(world, task, 8)
        output, given = batch.output, given_by(world, batch)
        if output not in generator.bundle.outputs:
            continue
        samples = []
        for i in range(8):
            began = time.perf_counter()
            result = generator.generate(output, **{name: values[i : i + 1] for name, values in given.items()}, seed=i)
            samples.append((time.perf_counter() - began, result.evaluations_run))
        seconds, evaluations = (float(np.median(x)) for x in zip(*samples[1:], strict=True))
        figures |= {task: round(seconds, 3), f"{task}, evaluations": evaluations}
    return figures


MEASURES: dict[str, tuple[str, Callable[[Generator, World, int], Figures]]] = {  # by task: output it needs, function
    "caption": ("text", measure_caption),
    "draw": ("picture", measure_drawn("draw")),
    "imagine": ("picture", measure_drawn("imagine")),
    "ask": ("text", measure_said("ask")),
    "listen": ("text", measure_said("listen")),
    "watch": ("text", measure_said("watch")),
    "read": ("text", measure_said("read")),
    "animate": ("film", measure_films),
    "speak": ("sound", measure_speech),
    "write": ("series", measure_strokes),
    "retrieval": ("text", measure_retrieval),
    "latency": ("text", measure_latency),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tasks", default=",".join(MEASURES))
    parser.add_argument("--count", type=int, default=200, help="things that each task is measured on")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world, figures = World(Path("build/everyday")), dict[str, Figures]()
    with load(args.bundle, "ort-cpu", threads=args.threads) as generator:
        for task in args.tasks.split(","):
            output, measure = MEASURES[task]
            if output not in generator.bundle.outputs:
                print(f"{task}: left out, the bundle makes no {output}", flush=True)
                continue
            began = time.monotonic()
            figures[task] = measure(generator, world, args.count)
            figures[task]["seconds"] = round(time.monotonic() - began, 1)
            print(f"{task}: " + ", ".join(f"{name} {value}" for name, value in figures[task].items()), flush=True)
    Path("build/everyday/figures.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
