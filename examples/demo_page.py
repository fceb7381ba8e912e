"""What the embedded any-to-any model does, on one page: pictures, names, speech, films, answers, strokes.

    mmgen-export --model everyday --fp16 -o build/everyday.mmgen
    python examples/demo_page.py build/everyday.mmgen build/demo.html

The page is one file, with all media inside.  Whatever is made of text is then given back to the model, to be named,
heard, watched or read.
"""

import base64
import html
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmgen.runtime import Generator, Result, load

PICTURES = ("red apple", "rocket", "cat face", "pizza", "a snowman, please", "guitar", "sunflower", "blue heart")
SPOKEN = ("fire engine", "birthday cake", "crescent moon", "red apple")
FILMED = ("rocket moving up", "red apple turning left", "cat face jumping", "balloon growing")
STROKES = ("circle", "spiral", "zigzag", "heart")
QUESTIONS = (
    "what is this?",
    "what colour is it?",
    "which group is it in?",
    "is it a rocket?",
    "what is this? red apple. and what colour is it?",
)
TYPES = {".png": "image/png", ".gif": "image/gif", ".wav": "audio/wav"}
PAGE = """<!doctype html>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>mmgen: any to any</title>
<style>
  :root {{ color-scheme: light dark }}
  body {{ font: 16px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem }}
  section div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem }}
  figure {{ margin: 0; padding: .75rem; border: 1px solid #8885; border-radius: .5rem }}
  img, svg {{ width: 100%; aspect-ratio: 1; background: white; border-radius: .25rem }}
  audio {{ width: 100% }}
</style>
<h1>What one small model does</h1>
<p>{bundle}, {megabytes:.0f} MB of half-precision graphs, on {backend}, without torch. A line says what was asked, what
came of it, and how long it took here.</p>
{sections}
"""


@dataclass(frozen=True)
class Shown:
    """One thing on the page: HTML of a medium, and lines below it."""

    medium: str
    lines: tuple[str, ...]


class Asking:
    """A generator that is asked for one thing at a time, and says so."""

    def __init__(self, generator: Generator, files: Path) -> None:
        self._generator, self._files = generator, files

    def __call__(self, output: str, **given: object) -> tuple[Result, str]:
        """Return the result, and how long it took."""
        began = time.perf_counter()
        result = self._generator.generate(output, conditions=given, seed=7)
        seconds = f"{time.perf_counter() - began:.2f} s"
        said = ", ".join(repr(value) if isinstance(value, str) else f"a {name}" for name, value in given.items())
        print(f"{output} of {said}: {seconds}", file=sys.stderr)
        return result, seconds

    def medium(self, result: Result, suffix: str) -> str:
        """Return HTML that shows or plays what was made."""
        file = self._files / f"made{suffix}"
        result.save(file)
        content = base64.b64encode(file.read_bytes()).decode()
        source = f'src="data:{TYPES[suffix]};base64,{content}"'
        return f"<audio controls {source}></audio>" if suffix == ".wav" else f'<img alt="" {source}>'


def there_and_back(
    ask: Asking, output: str, texts: tuple[str, ...], made: str, given_back: str
) -> Iterator[tuple[Result, tuple[str, ...]]]:
    """Text to something, and that to text again: what was made, and a line for each way."""
    for text in texts:
        result, seconds = ask(output, text=text)
        back, again = ask("text", **{output: result.media[0]})
        yield result, (f"{made}: {text} ({seconds})", f"{given_back}: {back.text} ({again})")


def pictures(ask: Asking) -> Iterator[Shown]:
    """Text to picture, and the picture to its name."""
    for drawn, lines in there_and_back(ask, "picture", PICTURES, "drawn", "named"):
        yield Shown(ask.medium(drawn, ".png"), lines)


def speech(ask: Asking) -> Iterator[Shown]:
    """Text to speech, the speech to text, and to a picture."""
    for spoken, lines in there_and_back(ask, "sound", SPOKEN, "said", "heard"):
        drawn, seconds = ask("picture", sound=spoken.media[0])
        medium = ask.medium(spoken, ".wav") + ask.medium(drawn, ".png")
        yield Shown(medium, (*lines, f"drawn of what was heard ({seconds})"))


def films(ask: Asking) -> Iterator[Shown]:
    """Text to film, and the film to what is seen in it."""
    for filmed, lines in there_and_back(ask, "film", FILMED, "filmed", "seen"):
        yield Shown(ask.medium(filmed, ".gif"), lines)


def answers(ask: Asking) -> Iterator[Shown]:
    """Questions about one picture, the last of which refers to the one before."""
    drawn, _ = ask("picture", text="red apple")
    asked = []
    for question in QUESTIONS:
        answered, seconds = ask("text", picture=drawn.media[0], text=question)
        asked.append(f"{question} {answered.text} ({seconds})")
    yield Shown(ask.medium(drawn, ".png"), tuple(asked))


def strokes(ask: Asking) -> Iterator[Shown]:
    """Words to a stroke, and the stroke to the word."""
    for written, lines in there_and_back(ask, "series", STROKES, "written", "read"):
        path = " ".join(f"{x:.3f},{-y:.3f}" for x, y in written.media[0])
        line = f'<polyline points="{path}" fill="none" stroke="black" stroke-width="0.05" stroke-linecap="round"/>'
        yield Shown(f'<svg viewBox="-1.3 -1.3 2.6 2.6">{line}</svg>', lines)


SECTIONS: dict[str, Callable[[Asking], Iterator[Shown]]] = {
    "Pictures": pictures, "Speech": speech, "Films": films, "Questions": answers, "Strokes": strokes,
}  # fmt: skip


def section(title: str, things: Iterator[Shown]) -> str:
    """Return a section's HTML."""
    figures = (
        f"<figure>{thing.medium}<figcaption>{'<br>'.join(map(html.escape, thing.lines))}</figcaption></figure>"
        for thing in things
    )
    return f"<section><h2>{title}</h2><div>{''.join(figures)}</div></section>"


def main() -> None:
    """Ask for everything, and write the page."""
    bundle, page = Path(sys.argv[1]), Path(sys.argv[2])
    with load(bundle) as generator, tempfile.TemporaryDirectory() as files:
        ask = Asking(generator, Path(files))
        sections = "\n".join(section(title, make(ask)) for title, make in SECTIONS.items())
        megabytes = sum(file.stat().st_size for file in (bundle / "graphs").iterdir()) / 1e6
        text = PAGE.format(
            bundle=html.escape(generator.bundle.name), megabytes=megabytes, backend=generator.backend, sections=sections
        )
        page.write_text(text, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
