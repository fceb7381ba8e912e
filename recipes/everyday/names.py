"""What the emoji are called: names, keywords and groups, from ``unicode-emoji-json`` and ``emojilib``."""

import json
import re
import shutil
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Name:
    """One emoji without a skin tone, and what people call it."""

    char: str  # as Unicode writes it, with its variation selectors
    key: str  # the same without them, as code points in hexadecimal, joined by '-'
    name: str  # CLDR's short name as ``words``
    keywords: tuple[str, ...]
    group: str  # one of ``GROUPS``


GROUPS = {
    "Smileys & Emotion": "smileys",
    "People & Body": "people",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Travel & Places": "travel",
    "Activities": "activities",
    "Objects": "objects",
    "Symbols": "symbols",
    "Flags": "flags",
}


def fetch(folder: Path) -> Path:
    """Install the npm packages into ``folder`` unless they are there; returns its node_modules."""
    modules = folder / "node_modules"
    if not (modules / "unicode-emoji-json" / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(HERE / file, folder / file)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return modules


def words(text: str) -> str:
    """Lower-case words and numbers without accents, one blank between them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+|[#*]", plain.replace("'", "")))


def key_of(char: str) -> str:
    return "-".join(f"{ord(c):04X}" for c in char if c != "\ufe0f")


def load_names(modules: Path) -> list[Name]:
    """Every emoji in Unicode's order."""
    records = json.loads((modules / "unicode-emoji-json/data-by-emoji.json").read_text())
    library = json.loads((modules / "emojilib/dist/emoji-en-US.json").read_text())
    library = {key_of(char): entry for char, entry in library.items()}
    names = []
    for char, record in records.items():
        name = words(record["name"])
        own = (words(k.replace("_", " ")) for k in library.get(key_of(char), []))
        keywords = tuple(k for k in dict.fromkeys(own) if k and k != name)
        names.append(Name(char, key_of(char), name, keywords, GROUPS[record["group"]]))
    assert len({n.name for n in names}) == len(names), "two emoji have one name"
    return names
