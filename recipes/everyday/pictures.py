"""Pictures of the emoji by several vendors, as memory-mapped arrays: ``python pictures.py``.

``VENDOR.npy`` is uint8 (N, 64, 64, 4), colours not multiplied by alpha, and zeros where a vendor has no such picture.
The first vendors' licences let what is shipped learn from them; the others' pictures serve to measure alone.
"""

import json
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import resvg_py
from names import Name, fetch, key_of, load_names, words
from numpy.typing import NDArray
from PIL import Image

SIZE = 64
LEARNT = ("google", "fluent-emoji", "fluent-emoji-flat", "noto-v1", "fxemoji")  # Apache-2.0 and MIT
HELD_OUT = ("twemoji", "openmoji")  # CC BY 4.0 and CC BY-SA 4.0
PIXELS = 60  # of an SVG's longer side, so that all vendors leave the margin that Google's pictures have

Pictures = NDArray[np.uint8]


def _as_array(image: Image.Image) -> Pictures:
    return np.asarray(image.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def _records(modules: Path) -> dict[str, dict]:
    """Google's records by ``Name.key``."""
    records = json.loads((modules / "emoji-datasource-google/emoji.json").read_text())
    return {key_of(_char(r["unified"])): r for r in records if r["has_img_google"]}


def _char(points: str) -> str:
    return "".join(chr(int(p, 16)) for p in points.split("-"))


def _compact(text: str) -> str:
    return words(text.replace("-", " ").replace("flag for", "flag")).replace(" ", "")


def _iconify(modules: Path, vendor: str) -> dict[str, str]:
    """SVG texts of a package of Iconify, by ``Name.key`` or, where it has no table of those, by ``_compact`` names."""
    folder = modules / "@iconify-json" / vendor
    icons = json.loads((folder / "icons.json").read_text())
    bodies = dict(icons["icons"])
    bodies |= {name: bodies[a["parent"]] for name, a in icons.get("aliases", {}).items() if a["parent"] in bodies}
    chars = json.loads((folder / "chars.json").read_text())
    called = {key_of(_char(points)): name for points, name in chars.items() if name in bodies}
    return {key: _svg(bodies[n], icons) for key, n in (called or {_compact(n): n for n in bodies}).items()}


def _svg(icon: dict, whole: dict) -> str:
    w, h = (icon.get(k, whole.get(k, 16)) for k in ("width", "height"))
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {w} {h}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" width="{w}" height="{h}">{icon["body"]}</svg>'


def _drawn(svg: str) -> Image.Image:
    """An SVG, fitted into the picture's middle."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=4 * PIXELS, skip_system_fonts=True)
    image = Image.open(BytesIO(bytes(png))).convert("RGBA")
    scale = 4 * PIXELS / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    whole = Image.new("RGBA", (4 * SIZE, 4 * SIZE))
    whole.paste(image, ((whole.width - image.width) // 2, (whole.height - image.height) // 2))
    return whole


def draw_vendor(modules: Path, names: list[Name], vendor: str) -> Pictures:
    """One vendor's pictures of ``names``, uint8 (N, 64, 64, 4)."""
    out = np.zeros((len(names), SIZE, SIZE, 4), np.uint8)
    records = _records(modules)
    svgs = {} if vendor == "google" else _iconify(modules, vendor)
    for i, name in enumerate(names):
        record = records[name.key]
        if vendor == "google":
            out[i] = _as_array(Image.open(modules / "emoji-datasource-google/img/google/64" / record["image"]))
            continue
        keys = (name.key, _compact(name.name), _compact(record["name"] or ""))
        if svg := next((svgs[k] for k in keys if k in svgs), None):
            out[i] = _as_array(_drawn(svg))
    return out


def load_pictures(folder: Path, vendor: str) -> Pictures:
    """What ``main`` wrote, mapped."""
    return np.load(folder / "pictures" / f"{vendor}.npy", mmap_mode="r")


def on_ground(picture: Pictures, ground: NDArray[np.float32] | int = 255) -> Pictures:
    """RGBA (..., 4) laid over a ground, a grey level or (..., 3), to RGB (..., 3)."""
    alpha = picture[..., 3:].astype(np.float32) / 255
    return (picture[..., :3] * alpha + np.asarray(ground, np.float32) * (1 - alpha)).round().astype(np.uint8)


def load_named(folder: Path) -> list[Name]:
    """The emoji that have a picture by Google, which is what all arrays are rows of."""
    names = load_names(fetch(folder))
    records = _records(folder / "node_modules")
    return [n for n in names if n.key in records]


def main() -> None:
    folder = Path("build/everyday")
    names = load_named(folder)
    (folder / "pictures").mkdir(exist_ok=True)
    draw = partial(draw_vendor, folder / "node_modules", names)
    for vendor in LEARNT + HELD_OUT:
        file = folder / "pictures" / f"{vendor}.npy"
        if not file.is_file():
            np.save(file, draw(vendor))
        pictures = load_pictures(folder, vendor)
        print(f"{vendor}: {int(pictures[..., 3].any((1, 2)).sum())} of {len(names)} names", flush=True)


if __name__ == "__main__":
    main()
