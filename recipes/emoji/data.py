"""Noto emoji with captions: pictures from ``emoji-datasource-google``, words from ``emojilib``.

``fetch`` installs both npm packages into a folder (npm checks their hashes
against ``package-lock.json`` beside this file); ``load`` reads them.
"""

import json
import re
import shutil
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).parent
SKIN_TONES = {
    "1F3FB": "light skin tone",
    "1F3FC": "medium light skin tone",
    "1F3FD": "medium skin tone",
    "1F3FE": "medium dark skin tone",
    "1F3FF": "dark skin tone",
}


@dataclass(frozen=True)
class Emoji:
    """One picture and what people call it."""

    unified: str  # code points in hexadecimal, joined by '-'
    name: str  # the caption: CLDR's short name, with skin tones where there are any
    aliases: tuple[str, ...]  # other full names
    keywords: tuple[str, ...]
    base: str  # ``unified`` of the emoji this one varies in skin tone; its own otherwise
    picture: NDArray[np.uint8]  # (64, 64, 3), on white


def fetch(folder: Path) -> Path:
    """Install the two npm packages into ``folder`` unless they are there; returns its node_modules."""
    modules = folder / "node_modules"
    if not (modules / "emojilib" / "package.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("package.json", "package-lock.json"):
            shutil.copy(HERE / file, folder / file)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return modules


def words(text: str) -> str:
    """Lower-case words and numbers without accents, one blank between them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9]+|[#*+!?]", plain.replace("'", "")))


def _picture(path: Path) -> NDArray[np.uint8]:
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB").resize((64, 64)))


def _tones(key: str) -> str:
    names = [SKIN_TONES[part] for part in key.split("-")]
    return " and ".join(dict.fromkeys(names))


def load(modules: Path) -> list[Emoji]:
    """Every emoji that has a Google picture, base emoji first, then skin-tone variants."""
    source = modules / "emoji-datasource-google"
    records = json.loads((source / "emoji.json").read_text())
    library = json.loads((modules / "emojilib/dist/emoji-en-US.json").read_text())
    # emojilib's first word is CLDR's short name, but a few of those are not unique without their signs.
    library = {"-".join(f"{ord(c):04X}" for c in k if c != "\ufe0f"): v for k, v in library.items()}
    plain, variants, taken = [], [], set[str]()
    for record in sorted(records, key=lambda r: r["sort_order"]):
        if not record["has_img_google"]:
            continue
        unified = record["unified"]
        entry = library.get(unified.replace("-FE0F", ""), [])
        own = words(record["name"])
        name = words(entry[0].replace("_", " ")) if entry else own
        name = own if name in taken else name
        taken.add(name)
        aliases = tuple(dict.fromkeys([own, *(words(s.replace("_", " ")) for s in record["short_names"])]))
        keywords = tuple(dict.fromkeys(w for w in (words(k.replace("_", " ")) for k in entry[1:]) if w))
        folder = source / "img/google/64"
        plain.append(
            Emoji(
                unified,
                name,
                tuple(a for a in aliases if a and a != name),
                keywords,
                unified,
                _picture(folder / record["image"]),
            )
        )
        for key, variant in record.get("skin_variations", {}).items():
            tone = _tones(key)
            variants.append(
                Emoji(
                    variant["unified"],
                    f"{name} {tone}",
                    tuple(f"{a} {tone}" for a in aliases if a),
                    keywords,
                    unified,
                    _picture(folder / variant["image"]),
                )
            )
    return plain + variants


def held_out(emoji: list[Emoji]) -> NDArray[np.bool_]:
    """Which pictures the autoencoder never sees: every 19th base emoji with all its variants."""
    bases = [e.unified for e in emoji if e.base == e.unified]
    chosen = set(bases[::19])
    return np.array([e.base in chosen for e in emoji])
