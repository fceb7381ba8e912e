"""Imports between rooms go one way, as docs/architecture.md draws them, and rooms, and folders of tests, stay small."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tree import ROOT, TESTS, imports

# What each room may import beside itself.  Rooms of the same package only: what packages may import is below.
RUNTIME = {
    "base": "",
    "files": "base",
    "storage": "base files",
    "builds": "base files storage",
    "solvers": "base storage",
    "media": "base files storage",
    "request": "base files storage solvers media",
    "backends": "base files storage builds",
    "backends.openvino": "base files storage backends",
    "backends.ort": "base files storage builds backends",
    "backends.tensorrt": "base files storage builds backends",
    "loop": "base files storage solvers media request backends",
    "": "base files storage builds solvers media request backends backends.tensorrt loop",
    "bench": "base files storage builds solvers media request backends backends.tensorrt loop root",
    "cli": (
        "base files storage builds solvers media request backends backends.openvino backends.ort backends.tensorrt "
        "loop root bench"
    ),
}
EXPORT = {
    "base": "",
    "networks": "base",
    "graph_files": "base",
    "sources.checkpoint": "base networks",
    "sources": "base networks graph_files sources.checkpoint",
    "graphs": "base",
    "tracing": "base graphs graph_files",
    "hoisting": "base tracing",
    "half": "base tracing hoisting",
    "proof": "base graphs tracing hoisting half",
    "": "base graph_files sources graphs tracing hoisting half proof",
}
PACKAGES = {"runtime": "", "export": "runtime", "engines": "runtime"}
ROOMS = [("runtime", room) for room in RUNTIME] + [("export", room) for room in EXPORT] + [("engines", "")]
MOST_FILES, MOST_LINES = 14, 400


def files(package: str, room: str) -> list[Path]:
    return sorted((ROOT / package / room.replace(".", "/")).glob("*.py"))


def room_of(module: str) -> tuple[str, str] | None:
    """Package and room that a module of ours, or a name in one, is of."""
    _, package, *rest = module.split(".")
    folder = ROOT / package
    room = []
    for name in rest:
        if not (folder / name).is_dir():
            break
        folder, room = folder / name, [*room, name]
    return package, ".".join(room)


def imported(file: Path) -> Iterator[tuple[str, str]]:
    for module in imports(file):
        if module.count(".") >= 2 and module.startswith(("mmgen.runtime.", "mmgen.export.", "mmgen.engines.")):
            yield room_of(module)


def test_every_folder_is_a_room() -> None:
    for package, rooms in (("runtime", RUNTIME), ("export", EXPORT), ("engines", {"": ""})):
        found = {".".join(f.parent.relative_to(ROOT / package).parts) for f in (ROOT / package).rglob("*.py")}
        assert found == set(rooms)


@pytest.mark.parametrize(("package", "room"), ROOMS, ids=lambda name: name or "root")
def test_a_room_imports_what_it_may(package: str, room: str) -> None:
    rooms = {"runtime": RUNTIME, "export": EXPORT, "engines": {"": ""}}[package]
    allowed = {(package, "" if name == "root" else name) for name in (*rooms[room].split(), room or "root")}
    against = [
        f"{file.relative_to(ROOT)} imports {'.'.join(filter(None, other))}"
        for file in files(package, room)
        for other in set(imported(file))
        if other not in allowed and other[0] not in PACKAGES[package].split()
    ]
    assert not against


@pytest.mark.parametrize(("package", "room"), ROOMS, ids=lambda name: name or "root")
def test_a_room_is_small_and_says_what_it_is(package: str, room: str) -> None:
    there = files(package, room)
    assert len(there) <= MOST_FILES
    for file in there:
        assert len(file.read_text().splitlines()) <= MOST_LINES, file
    assert ast.get_docstring(ast.parse((there[0].parent / "__init__.py").read_text())), "says what the room is for"


def test_folders_of_tests_are_as_small() -> None:
    there = sorted(TESTS.rglob("*.py"))
    folders = Counter(str(file.parent.relative_to(TESTS)) for file in there)
    lines = {str(file.relative_to(TESTS)): len(file.read_text(encoding="utf-8").splitlines()) for file in there}
    assert not {folder: count for folder, count in folders.items() if count > MOST_FILES}
    assert not {file: count for file, count in lines.items() if count > MOST_LINES}


@pytest.mark.parametrize(("package", "rooms"), [("runtime", RUNTIME), ("export", EXPORT)], ids=["runtime", "export"])
def test_the_architecture_lists_them(package: str, rooms: dict[str, str]) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition(f"| room of `{package}` |")[2].partition("\n\n")[0]
    lines = re.findall(r"^\| `?([\w.]+)`? \| .* \| (.*) \|$", table, re.M)
    assert [name.replace("root", "") for name, _ in lines] == list(rooms)
    told = {name: re.findall(r"`([\w.]+)`", allowed) for name, allowed in lines if "all" not in allowed}
    assert told == {name: rooms[name].split() for name in told}
