"""Questions about a picture with answers that follow from the data, and dialogues of two of them."""

import numpy as np
from names import GROUPS, Name
from numpy.typing import NDArray
from PIL import Image

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "grey", "white")
NUMBERS = ("one", "two", "three", "four")
WHAT = ("what is this", "what is it", "what do you see", "what does it show")
COLOUR = ("what colour is it", "which colour is this", "what color is it")
GROUP = ("which group is it in", "what group does it belong to", "what kind of thing is it")
COUNT = ("how many are there", "how many do you see")
FOLLOWING = ". and "  # what joins the two questions of a dialogue
KINDS = ("what", "colour", "group", "is it", "is it colour")  # of one emoji; "how many" has a picture of its own


def colour_of(picture: NDArray[np.uint8]) -> str:
    """The colour that most of an RGBA picture's opaque pixels have, one of ``COLOURS``."""
    shown = picture[picture[..., 3] > 127][:, :3]
    if not len(shown):
        return "white"
    hsv = np.asarray(Image.fromarray(shown[None]).convert("HSV"))[0].astype(float)
    hue, saturation, value = hsv[:, 0] * 360 / 255, hsv[:, 1] / 255, hsv[:, 2] / 255
    names = np.select(
        [
            value < 0.22,
            (saturation < 0.15) & (value > 0.85),
            saturation < 0.15,
            (saturation < 0.35) & (value < 0.75),
            ((hue < 14) | (hue > 345)) & (saturation < 0.55) & (value > 0.75),
            (hue < 40) & (value < 0.68),
            (hue < 14) | (hue > 345),
            hue < 38,
            hue < 68,
            hue < 165,
            hue < 255,
            (hue < 300) & (value < 0.9),
        ],
        ["black", "white", "grey", "grey", "pink", "brown", "red", "orange", "yellow", "green", "blue", "purple"],
        "pink",
    )
    found, counts = np.unique(names, return_counts=True)
    return str(found[counts.argmax()])


def answer(kind: str, asked: str, name: Name, colour: str) -> str:
    """What is true of a picture of ``name`` in which ``colour`` prevails."""
    match kind:
        case "what":
            return name.name
        case "colour":
            return colour
        case "group":
            return name.group
        case "is it":
            return "yes" if asked == name.name else "no"
        case "is it colour":
            return "yes" if asked == colour else "no"
        case other:
            raise ValueError(other)


def question(kind: str, asked: str, random: np.random.Generator) -> str:
    """A way to ask, half of them with a question mark; ``asked`` is a name or a colour where the kind needs one."""
    ways = {"what": WHAT, "colour": COLOUR, "group": GROUP, "is it": (f"is it {asked}", f"is this a {asked}")}
    return str(random.choice(ways.get(kind, (f"is it {asked}", f"is this {asked}")))) + str(random.choice(("", "?")))


def draw_question(
    names: list[Name], chosen: int, colour: str, random: np.random.Generator, kinds: tuple[str, ...] = KINDS
) -> tuple[str, str, str]:
    """A question about one emoji, its answer, and its kind; half of what is asked with yes or no is so."""
    kind = str(random.choice(kinds))
    yes = random.random() < 0.5
    other = names[int(random.integers(len(names)))].name
    asked = ""
    if kind == "is it":
        asked = names[chosen].name if yes else other
    elif kind == "is it colour":
        asked = colour if yes else str(random.choice(COLOURS))
    return question(kind, asked, random), answer(kind, asked, names[chosen], colour), kind


def draw_dialogue(names: list[Name], chosen: int, colour: str, random: np.random.Generator) -> tuple[str, str, str]:
    """A question with its answer and a question after it, the second one's answer, and its kind."""
    first, said, _ = draw_question(names, chosen, colour, random)
    second, answered, kind = draw_question(names, chosen, colour, random)
    return f"{first} {said}{FOLLOWING}{second}", answered, kind


def every_text() -> list[str]:
    """What a tokenizer must know of questions and answers."""
    asked = [*WHAT, *COLOUR, *GROUP, *COUNT, "is it", "is this a", "and", "? .", "yes", "no"]
    return [*asked, *COLOURS, *NUMBERS, *GROUPS.values()]
