"""The page of a benchmark: whole, escaped, and drawn where the figures say."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from commands import done, mmgen
from manifests import edit

from mmgen.runtime.bench import plots
from mmgen.runtime.bench.report import STYLE

NAME = 'a <script>alert("x")</script> & b'
VOID = {"meta"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects text and tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a bundle whose name is no good in HTML."""
    folder = tmp_path_factory.mktemp("report")
    for file in bundle_folder.rglob("*"):
        if file.is_file() and "engines" not in file.parts:
            (folder / "b.mmgen" / file.relative_to(bundle_folder)).parent.mkdir(parents=True, exist_ok=True)
            (folder / "b.mmgen" / file.relative_to(bundle_folder)).write_bytes(file.read_bytes())
    edit(folder / "b.mmgen", lambda record: record.update(name=NAME))
    arguments = ("--runs=12", "--warmup=1", "--starts=1", "--steps=3", "--threads=1", "--batch=1", "--batch=2")
    done("bench", str(folder / "b.mmgen"), *arguments, "--report", str(folder / "new/report"))
    assert [file.name for file in (folder / "new/report").iterdir()] == ["index.html"]
    return (folder / "new/report/index.html").read_text(encoding="utf-8")


def test_it_is_one_whole_page_that_asks_for_nothing(page: str) -> None:
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>") and parsed.open == []
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import|\son\w+=", page)


def test_names_are_escaped(page: str) -> None:
    assert NAME in Page(page).text
    assert NAME not in page and "<script" not in page


def test_it_has_the_figures_and_the_diagrams(page: str) -> None:
    parsed = Page(page)
    for words in ("end to end", "jitter of evaluations", "not included", "means nothing here", "samples a second",
                  "until the first media", "batch 2, threads 1: 12 requests of 3 evaluations"):  # fmt: skip
        assert words in parsed.text
    drawings = [attributes["aria-label"] or "" for tag, attributes in parsed.tags if tag == "svg"]
    assert sum(label.startswith("Histogram") for label in drawings) == 2
    assert sum(label.startswith("Timeline") for label in drawings) == 2
    assert "samples a second" in drawings
    for drawing in re.findall(r"<svg.*?</svg>", page, re.S):
        ElementTree.fromstring(drawing)
        assert "nan" not in drawing and "inf" not in drawing


def test_each_colour_is_there_in_light_and_in_dark() -> None:
    light, dark = (set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S))
    assert light == dark == set(re.findall(r"var\((--\w+)\)", STYLE))


def test_a_place_that_can_t_be_written_is_one_line(bundle_copy: Path) -> None:
    Path("file").write_text("")
    result = mmgen("bench", "b.mmgen", "--report", "file/report")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: file/report can't be made (Not a directory)")


# Drawings


def rectangles(svg: ElementTree.Element, kind: str) -> list[dict[str, float]]:
    found = (e for e in svg.iter("rect") if e.get("class", "").startswith(kind) and list(e))
    return [{name: float(e.get(name, "nan")) for name in ("x", "y", "width", "height")} for e in found]


def test_bars_are_as_high_as_their_values() -> None:
    first, second = rectangles(plots.bars([("a", 2.0), ("b", 5.0)], "things"), "fill0")
    assert first["height"] / second["height"] == pytest.approx(2 / 5, rel=1e-2)
    assert first["y"] + first["height"] == pytest.approx(second["y"] + second["height"])


def test_a_histogram_counts_every_value() -> None:
    svg = plots.histogram({"a": [1.0, 1.0, 2.0, 9.0], "b": [5.0]}, "ms")
    counted = [re.match(r"(\w): (\d+) of", title.text or "") for title in svg.iter("title")]
    assert sum(int(found[2]) for found in counted if found and found[1] == "a") == 4
    assert sum(int(found[2]) for found in counted if found and found[1] == "b") == 1
    assert len(plots.histogram({"a": [3.0]}, "ms")), "one value is a distribution too"


def test_parts_of_a_timeline_follow_each_other() -> None:
    svg = plots.timeline([("a", 0, 0.0, 10.0), ("b", 1, 10.0, 30.0)], "ms", [("a", 0)])
    (a,), (b,) = rectangles(svg, "fill0 edge"), rectangles(svg, "fill1 edge")
    assert b["width"] == pytest.approx(3 * a["width"], rel=1e-2)
    assert a["x"] + a["width"] == pytest.approx(b["x"], abs=0.2)


@pytest.mark.parametrize("top", [100.0, None])
def test_a_graph_at_its_ceiling_lies_on_the_roof(top: float | None) -> None:
    svg = plots.roofline([("at", 2.0, 20.0)], 10.0, top)
    (dot,) = svg.iter("circle")
    (roof,) = (line for line in svg.iter("polyline") if "roof" in line.get("class", ""))
    corners = [tuple(map(float, corner.split(","))) for corner in roof.get("points", "").split()]
    (x0, y0), (x1, y1) = corners[:2]
    x, y = float(dot.get("cx", "nan")), float(dot.get("cy", "nan"))
    assert x0 < x < x1
    assert y == pytest.approx(y0 + (x - x0) / (x1 - x0) * (y1 - y0), abs=0.3)
    assert len(corners) == (3 if top else 2)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.31, 0.34), (-3.0, 1900.0), (1e-9, 3e-9), (0.0, 6e12)])
def test_ticks_are_few_round_and_inside(ends: tuple[float, float]) -> None:
    low, high = ends
    found = plots.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 * abs(high) <= tick <= high * (1 + 1e-9) for tick in found)
    step = found[1] - found[0]
    assert step / 10 ** math.floor(math.log10(step * (1 + 1e-9))) == pytest.approx(round(step / 10 ** math.floor(
        math.log10(step * (1 + 1e-9)))), abs=1e-6)  # fmt: skip


def test_powers_are_enough_to_read_an_axis() -> None:
    assert plots.powers(0.5, 2000.0) == [1, 10, 100, 1000]
    assert plots.powers(15.0, 90.0) == [20, 50]
