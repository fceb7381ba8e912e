"""What ``mmgen generate`` leaves on disk: a picture, a sheet, an array, or a folder of them."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.cli.png import png, sheet
from mmgen.runtime.files.atomic import followed, whole_file
from mmgen.runtime.storage.schema import Media

KEYWORD = "mmgen"  # of the text in a PNG file that says how it was made, as JSON


@dataclass(frozen=True)
class Samples:
    """Media (B, ...) and what is known of them."""

    media: NDArray[Any]
    labels: tuple[str, ...]  # B, each fit for a file name
    request: Mapping[str, Any]  # how they were made
    columns: int | None = None  # of a sheet; None: as the sheet likes

    def content(self, suffix: str) -> bytes:
        """As a file: all samples in one array (.npy), or on one sheet (.png)."""
        if suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, self.media)
            return buffer.getvalue()
        return png(sheet(self.media, self.columns), {KEYWORD: json.dumps(self.request)})


@contextmanager
def destination(output: str, media: Media) -> Iterator[Callable[[Samples], list[Path]]]:
    """Yield a function that writes samples and returns the files; the place is tried before there are any samples.

    OUT.png is one picture, or a sheet of all; OUT.npy the array (B, ...); a folder, or OUT/, gets a file a sample.

    Raises:
        MmgenError: a place that can't be written, or a kind of file that this media can't be.
    """
    path = Path(output)
    suffixes = (".png", ".npy") if media.kind == "image" else (".npy",)
    if output.endswith("/") or path.is_dir():
        with _folder(path):
            yield lambda samples: _save_each(samples, path, suffixes[0])
    elif path.suffix in suffixes:
        with whole_file(followed(path)) as write:

            def save(samples: Samples) -> list[Path]:
                write(samples.content(path.suffix))
                return [path]

            yield save
    else:
        kinds = " or ".join(f"NAME{suffix}" for suffix in suffixes)
        raise MmgenError(f"output {output}", wanted=f"{kinds} or FOLDER/ for media of kind {media.kind}")


def _save_each(samples: Samples, folder: Path, suffix: str) -> list[Path]:
    files = []
    for index, label in enumerate(samples.labels):
        one = Samples(samples.media[index : index + 1], (label,), {**samples.request, "sample": index})
        files.append(folder / (f"{index:03d}-{label}{suffix}" if label else f"{index:03d}{suffix}"))
        with whole_file(files[-1]) as write:
            write(one.content(suffix))
    return files


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Yield a folder that can be written; if it was made here and stays empty, it is removed."""
    new = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MmgenError(f"{path} can't be made ({error.strerror})", remedy="choose another place with -o") from error
    try:
        yield
    finally:
        if new and not any(path.iterdir()):
            path.rmdir()
