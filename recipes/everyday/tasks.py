"""Tasks: each draws, from a generator with a seed, a batch of what is given and of what is to be made of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import pi

import numpy as np
import torch
from films import draw_pair, films, premultiplied, sentence
from numpy.typing import NDArray
from pictures import HELD_OUT, LEARNT
from questions import COUNT, FOLLOWING, NUMBERS, draw_dialogue, draw_question
from speech import clip_at, in_a_room
from strokes import WORDS, draw_writer, stroke
from tokens import ask_for, encode_given, encode_made
from torch import Tensor
from torch.nn import functional as F
from world import World

Random = np.random.Generator
NOTHING = "nothing"  # what empty pictures, silence and noise are


@dataclass(frozen=True)
class Batch:
    """What is given, what is to be made, and what that means."""

    output: str
    target: Tensor  # codes (B, rows, columns)
    means: list[str]
    text: Tensor | None = None  # tokens (B, T)
    media: dict[str, Tensor] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)  # of questions


@dataclass(frozen=True)
class Match:
    """The same things in several ways, as words, pictures, sounds or some of these at once: of one vector."""

    views: tuple[dict[str, Tensor], ...]  # text as tokens (B, T), media
    names: Tensor  # int64 (B,), which emoji they are of


@dataclass(frozen=True)
class Known:
    """Codes that what the memory has of things should tell by itself."""

    output: str
    target: Tensor  # codes (B, rows, columns)
    names: Tensor  # int64 (B,), which emoji they are of


def _uniform(random: Random, count: int, low: float, high: float, *shape: int) -> Tensor:
    return torch.from_numpy(random.uniform(low, high, (count, *shape)).astype(np.float32))


def seen(pictures: NDArray[np.uint8], random: Random, least: float = 0.7) -> Tensor:
    """RGBA (B, 64, 64, 4) as a camera may see them: moved, scaled, tilted a little, on some ground, with some light.

    Half of the grounds are white.  float (B, 3, 64, 64) in [-1, 1].
    """
    count = len(pictures)
    uniform = partial(_uniform, random, count)

    size, angle, move = uniform(least, 1.1), uniform(-0.06, 0.06) * pi, uniform(-0.12, 0.12, 2)
    cos, sin, zero = angle.cos() / size, angle.sin() / size, torch.zeros(count)
    rows = torch.stack([cos, sin, zero, -sin, cos, zero], 1).unflatten(1, (2, 3))
    rows[:, :, :2] += uniform(-0.08, 0.08, 2, 2)  # slanted, as seen from the side
    rows[:, :, 2:] -= rows[:, :, :2] @ move[:, :, None]
    rgba = premultiplied(pictures)
    laid = F.grid_sample(rgba, F.affine_grid(rows, list(rgba.shape), align_corners=False), align_corners=False)
    coloured = (uniform(0, 1) < 0.5).float()[:, None]
    ground = (1 - coloured * (1 - uniform(0, 1, 3)))[:, :, None, None]
    image = laid[:, :3] + ground * (1 - laid[:, 3:])
    jitter = (uniform(0, 1) < 0.5).float()[:, None, None, None]
    gain, lift = (1 + jitter * uniform(-0.15, 0.15, 3, 1, 1)), jitter * uniform(-0.08, 0.08, 1, 1, 1)
    shade = jitter * uniform(-0.2, 0.2, 2, 1, 1)  # brighter towards one side, as of a lamp or of a screen
    place = torch.linspace(-1, 1, 64)
    image = image * (gain + shade[:, :1] * place[:, None] + shade[:, 1:] * place) + lift
    soft = (uniform(0, 1) < 0.2)[:, None, None, None]
    image = torch.where(soft, F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1), image)
    image = image + jitter * uniform(0, 0.04, 1, 1, 1) * torch.randn(image.shape)
    return 2 * image.clamp(0, 1) - 1


def restyled(pictures: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """RGBA (B, 64, 64, 4) as other vendors may draw them: other colours and contrast, a third with dark outlines."""
    count = len(pictures)
    uniform = partial(_uniform, random, count)

    rgb, alpha = (torch.from_numpy(pictures.astype(np.float32) / 255).movedim(-1, 1)).split((3, 1), 1)
    mix = torch.eye(3) + (uniform(0, 1, 1, 1) < 0.5) * uniform(-0.25, 0.25, 3, 3)
    mix = mix / mix.sum(2, keepdim=True)  # so that grey stays grey
    rgb = (mix @ rgb.flatten(2)).view_as(rgb)
    grey = rgb.mean(1, keepdim=True)
    rgb = (grey + uniform(0.5, 1.5, 1, 1, 1) * (rgb - grey)).clamp(0, 1) ** uniform(0.7, 1.4, 1, 1, 1)
    outlined = (uniform(0, 1, 1, 1, 1) < 0.33).float()
    on_white = rgb.mean(1, keepdim=True) * alpha + 1 - alpha
    within = (F.max_pool2d(on_white, 3, 1, 1) + F.max_pool2d(-on_white, 3, 1, 1) > 0.25).float()
    around = F.max_pool2d(alpha, 3, 1, 1) - alpha
    rgb = rgb * (1 - outlined * torch.maximum(within, (around > 0.1).float()) * uniform(0.7, 1, 1, 1, 1))
    alpha = alpha + outlined * around
    out = torch.cat([rgb, alpha], 1).movedim(1, -1).clamp(0, 1) * 255
    return out.round().to(torch.uint8).numpy()


def still(pictures: NDArray[np.uint8]) -> Tensor:
    """RGBA on white, as they are."""
    rgba = premultiplied(pictures)
    return 2 * (rgba[:, :3] + 1 - rgba[:, 3:]) - 1


def blank(random: Random) -> NDArray[np.float32]:
    """A picture of nothing, (3, 64, 64) in [-1, 1]: one colour, or noise."""
    noise = random.uniform(-1, 1, (3, 64, 64)) * random.choice([0, 0, 0.1, 1])
    return (random.uniform(-1, 1, (3, 1, 1)) + noise).clip(-1, 1).astype(np.float32)


def silence(random: Random) -> NDArray[np.float32]:
    """A short wave of nothing: no sound at all, or a hum."""
    hum = np.sin(2 * pi * random.uniform(50, 500) * np.arange(8000) / 16000) * random.choice([0, 0, 0.1])
    return hum.astype(np.float32)


def several(pictures: NDArray[np.uint8], counts: list[int], random: Random) -> Tensor:
    """Each picture one to four times, small, at as many of the four corners, on white: (B, 3, 64, 64)."""
    small = F.interpolate(premultiplied(pictures), size=(28, 28), mode="bilinear", antialias=True)
    out = torch.ones(len(pictures), 3, 64, 64)
    for i, count in enumerate(counts):
        for corner in random.permutation(4)[:count]:
            y, x = (32 * int(c) + int(random.integers(5)) for c in divmod(int(corner), 2))
            place = out[i, :, y : y + 28, x : x + 28]
            place.copy_(small[i, :3] + place * (1 - small[i, 3:]))
    return 2 * out - 1


def choose(world: World, random: Random, held_out: bool, count: int) -> tuple[NDArray[np.int64], NDArray, list[str]]:
    """Different emoji, each by some vendor: names' numbers, pictures, colours.  Google's half the time."""
    chosen = random.choice(len(world.names), count, replace=False)
    pictures, colours = [], []
    for i in chosen:
        vendors = [v for v in (HELD_OUT if held_out else LEARNT) if world.pictures[v][i, ..., 3].any()]
        vendor = "google" if not held_out and random.random() < 0.5 else str(random.choice(vendors))
        pictures.append(world.pictures[vendor][i])
        colours.append(world.colours[vendor][i])
    return chosen, np.stack(pictures), colours


def varied(pictures: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Half of them restyled."""
    half = random.random(len(pictures)) < 0.5
    out = pictures.copy()
    out[half] = restyled(pictures[half], random)
    return out


def _names(world: World, chosen: NDArray[np.int64]) -> list[str]:
    return [world.names[i].name for i in chosen]


def _texts(world: World, chosen: NDArray[np.int64], random: Random) -> Tensor:
    return encode_given(world.tokenizer, [ask_for(world.names[i], random) for i in chosen])


def _utterances(world: World, chosen: NDArray[np.int64], random: Random, held_out: bool) -> Tensor:
    """Somebody says each; who is held out does so where it is quiet."""
    if held_out:
        clips = [clip_at(world.speech["heldout"].draw(int(i), random), 0.5) for i in chosen]
    else:
        clips = [world.speech["train"].heard(int(i), random, varied=True) for i in chosen]
    return torch.from_numpy(np.stack(clips))


def caption(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Picture -> name; held out are other vendors' drawings."""
    chosen, pictures, _ = choose(world, random, held_out, count)
    means = _names(world, chosen)
    shown = still(pictures) if held_out else seen(pictures, random)
    if not held_out:
        shown[0], means[0] = torch.from_numpy(blank(random)), NOTHING
    return Batch("text", encode_made(world.tokenizer, means), means, media={"picture": shown})


def draw(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Text -> Google's picture; one text in ten is empty, for guidance."""
    chosen = random.choice(len(world.names), count, replace=False)
    texts = _texts(world, chosen, random)
    if held_out:
        texts = encode_given(world.tokenizer, _names(world, chosen))
    else:
        texts[torch.from_numpy(random.random(count) < 0.1)] = 0
    return Batch("picture", world.picture_codes[chosen], _names(world, chosen), text=texts)


def ask(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """picture, question -> answer: a third of them dialogues, a tenth "how many"."""
    return _asked(world, random, held_out, count)[0]


def _asked(world: World, random: Random, held_out: bool, count: int) -> tuple[Batch, NDArray[np.int64]]:
    chosen, pictures, colours = choose(world, random, held_out, count)
    shown = still(pictures) if held_out else seen(pictures, random)
    many = np.flatnonzero(random.random(count) < 0.1)
    counts = random.integers(1, 5, len(many)).tolist()
    if len(many):
        shown[many] = several(pictures[many], counts, random)
    drawn = [
        (draw_dialogue if random.random() < 0.33 else draw_question)(world.names, int(i), c, random)
        for i, c in zip(chosen, colours, strict=True)
    ]
    for i, number in zip(many, counts, strict=True):
        drawn[i] = (str(random.choice(COUNT)) + str(random.choice(("", "?"))), NUMBERS[number - 1], "how many")
    questions, means, kinds = (list(x) for x in zip(*drawn, strict=True))
    kinds = [f"dialogue: {k}" if FOLLOWING in q else k for q, k in zip(questions, kinds, strict=True)]
    text = encode_given(world.tokenizer, questions)
    return Batch("text", encode_made(world.tokenizer, means), means, text, {"picture": shown}, kinds), chosen


def listen(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Speech -> name."""
    chosen = random.choice(len(world.names), count, replace=False)
    means = _names(world, chosen)
    sound = _utterances(world, chosen, random, held_out)
    if not held_out:
        sound[0], means[0] = torch.from_numpy(in_a_room(silence(random), random)), NOTHING
    return Batch("text", encode_made(world.tokenizer, means), means, media={"sound": sound})


def imagine(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Speech -> picture."""
    chosen = random.choice(len(world.names), count, replace=False)
    sound = _utterances(world, chosen, random, held_out)
    return Batch("picture", world.picture_codes[chosen], _names(world, chosen), media={"sound": sound})


def speak(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Text -> speech, in the plain voice."""
    chosen = random.choice(len(world.names), count, replace=False)
    texts = encode_given(world.tokenizer, _names(world, chosen))
    return Batch("sound", world.sound_codes[chosen], _names(world, chosen), text=texts)


def _filmed(world: World, random: Random, held_out: bool, count: int) -> tuple[Tensor, list[str], list[int]]:
    """Films, what each shows, and which emoji it is."""
    pairs = [draw_pair(len(world.names), random, held_out) for _ in range(count)]
    names = [name for name, _ in pairs]
    pictures = world.pictures["google"][names]
    sentences = [sentence(world.names[name].name, motion) for name, motion in pairs]
    return films(pictures, [motion for _, motion in pairs], random), sentences, names


def watch(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Film -> sentence; held out are pairs of object and motion."""
    film, means, _ = _filmed(world, random, held_out, count)
    return Batch("text", encode_made(world.tokenizer, means), means, media={"film": film})


def animate(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Sentence -> film."""
    film, means, _ = _filmed(world, random, held_out, count)
    return Batch("film", world.codes_of("film", film), means, text=encode_given(world.tokenizer, means))


def _written(random: Random, held_out: bool, count: int) -> tuple[Tensor, list[str]]:
    kinds = random.integers(len(WORDS), size=count)
    lines = np.stack([stroke(int(k), draw_writer(random, held_out)) for k in kinds])
    return torch.from_numpy(lines), [WORDS[k] for k in kinds]


def read(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Stroke -> words; held out are other writers."""
    series, means = _written(random, held_out, count)
    return Batch("text", encode_made(world.tokenizer, means), means, media={"series": series})


def write(world: World, random: Random, held_out: bool, count: int) -> Batch:
    """Words -> stroke."""
    series, means = _written(random, held_out, count)
    text = encode_given(world.tokenizer, means)
    return Batch("series", world.codes_of("series", series), means, text=text)


def look(world: World, random: Random, held_out: bool, count: int) -> Known:
    """What the memory has of emoji -> Google's pictures."""
    chosen = random.choice(len(world.names), count, replace=False)
    return Known("picture", world.picture_codes[chosen], torch.from_numpy(chosen))


def voice(world: World, random: Random, held_out: bool, count: int) -> Known:
    """What the memory has of emoji -> their names in the plain voice."""
    chosen = random.choice(len(world.names), count, replace=False)
    return Known("sound", world.sound_codes[chosen], torch.from_numpy(chosen))


def name(world: World, random: Random, held_out: bool, count: int) -> Known:
    """What the memory has of emoji -> their names."""
    chosen = random.choice(len(world.names), count, replace=False)
    return Known("text", encode_made(world.tokenizer, _names(world, chosen)), torch.from_numpy(chosen))


def match_words(world: World, random: Random, held_out: bool, count: int) -> Match:
    """Words of an emoji, which cost so little that they are learnt first."""
    chosen = random.choice(len(world.names), count, replace=False)
    return Match(({"text": _texts(world, chosen, random)},), torch.from_numpy(chosen))


def match(world: World, random: Random, held_out: bool, count: int) -> Match:
    """Words and pictures of the same emoji."""
    chosen, pictures, _ = choose(world, random, held_out, count)
    shown = still(pictures) if held_out else seen(pictures, random)
    return Match(({"text": _texts(world, chosen, random)}, {"picture": shown}), torch.from_numpy(chosen))


def match_sound(world: World, random: Random, held_out: bool, count: int) -> Match:
    """Words and speech of the same emoji."""
    chosen = random.choice(len(world.names), count, replace=False)
    sound = _utterances(world, chosen, random, held_out)
    return Match(({"text": _texts(world, chosen, random)}, {"sound": sound}), torch.from_numpy(chosen))


def match_film(world: World, random: Random, held_out: bool, count: int) -> Match:
    """Sentences and films of the same emoji, whatever it does."""
    film, sentences, names = _filmed(world, random, held_out, count)
    return Match(({"text": encode_given(world.tokenizer, sentences)}, {"film": film}), torch.tensor(names))


def match_ask(world: World, random: Random, held_out: bool, count: int) -> Match:
    """Pictures with a question each."""
    batch, chosen = _asked(world, random, held_out, count)
    assert batch.text is not None
    return Match(({"text": batch.text} | batch.media,), torch.from_numpy(chosen))


Draw = Callable[[World, Random, bool, int], Batch | Match | Known]
TASKS: dict[str, Draw] = {
    f.__name__: f
    for f in (caption, draw, ask, listen, imagine, speak, watch, animate, read, write, name, look, voice, match_words,
              match, match_sound, match_film, match_ask)
}  # fmt: skip
