"""Links lead somewhere, and what pages list is what there is."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
from documents import CARDS, PAGES, README, anchors, prose, text_of
from tree import ROOT

from mmgen.runtime import Generator, Progress, Request, Result, load
from mmgen.runtime.backends.registry import NAMES
from mmgen.runtime.solvers.registry import ALONG_FLOW, ON_DIFFUSION, SAMPLERS
from mmgen.runtime.storage.schema import Bundle
from mmgen.runtime.storage.tensors import TENSORS

DOCS = ROOT / "docs"
MOST_WORDS = 900  # a hurried reader's patience
ROOMS = (ROOT, ROOT / "runtime", ROOT / "export")  # where paths in documents begin
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def named(page: Path) -> set[str]:
    """What stands in backticks."""
    return set(re.findall(r"`([^`\n]+)`", prose(page)))


def listed(page: Path) -> list[str]:
    """What stands in backticks at the beginnings of a page's tables."""
    return re.findall(r"^\| `([^`]+)`", text_of(page), re.M)


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    folders = ROOMS if page.name == "architecture.md" else ROOMS[:1]
    for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|json|svg|png|toml))`", prose(page)):
        assert any((folder / path).is_file() for folder in folders), path
    for folder in re.findall(r"`((?:benchmarks|docs|examples|export|recipes|runtime|tests)/[\w/-]+/?)`", prose(page)):
        assert (ROOT / folder).is_dir(), folder


def test_every_page_can_be_reached_from_the_first() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text_of(README))}
    assert set(PAGES) - {README} <= linked


def test_the_first_page_is_short() -> None:
    assert len(text_of(README).split()) <= MOST_WORDS


def test_figures_of_the_first_page_are_those_of_the_benchmarks() -> None:
    measured = text_of(README).partition("## Measured")[2].partition("\n## ")[0]
    figures = set(re.findall(r"\d[\d.]*(?:×| MB| s\b)", measured))
    assert len(figures) > 10
    assert not {figure for figure in figures if figure not in text_of(DOCS / "benchmarks.md")}


def test_backends_are_listed() -> None:
    for page in (README, DOCS / "backends.md"):
        assert [name for name in listed(page) if name in NAMES] == list(NAMES)


def test_solvers_are_listed_by_process() -> None:
    rows = re.findall(r"^\| (?:diffusion|flow|masked tokens) \| (.*) \|$", text_of(DOCS / "solvers.md"), re.M)
    assert [re.findall(r"`([^`]+)`", row) for row in rows] == [list(ON_DIFFUSION), list(ALONG_FLOW), list(SAMPLERS)]


def test_every_argument_and_every_field_of_a_result_is_described() -> None:
    arguments = {name for call in (load, Generator.generate) for name in inspect.signature(call).parameters}
    fields = {field.name for kind in (Request, Result, Progress) for field in dataclasses.fields(kind)}
    words = {word for name in named(DOCS / "api.md") for word in re.findall(r"\w+", name)}
    assert (arguments | fields) - {"self", "given"} <= words


def test_the_format_names_every_field_and_tensor() -> None:
    fields = {field.name for field in dataclasses.fields(Bundle) if not field.metadata.get("transient")}
    assert fields | TENSORS <= named(DOCS / "format.md")
