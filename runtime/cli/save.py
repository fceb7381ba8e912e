"""What ``mmgen generate`` leaves on disk: one file of all samples, or a folder of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.files.atomic import followed, whole_file
from mmgen.runtime.media.write import Batch, media_file, suffixes, writable
from mmgen.runtime.storage.schema import Media


@dataclass(frozen=True)
class Samples:
    """Media (B, ...) and what is known of them."""

    media: Batch
    labels: tuple[str, ...]  # B, each fit for a file name
    request: Mapping[str, Any]  # how they were made
    columns: int | None = None  # of a sheet; None: as the sheet likes


@contextmanager
def destination(output: str | None, media: Media, count: int = 1) -> Iterator[Callable[[Samples], list[Path]]]:
    """Yield a function that writes samples and returns the files; the place is tried before there are any samples.

    OUT.png is one picture, or a sheet of all, and so on for other kinds, as ``media_file`` has it; OUT.npy the array
    (B, ...); a folder, or OUT/, gets a file a sample.

    Args:
        output: None: no file is written.
        count: how many samples there will be.

    Raises:
        MmgenError: a place that can't be written, a kind of file that this media can't be, or the package that writes
            it is missing.
    """
    if output is None:
        yield lambda samples: []
        return
    path = Path(output)
    if output.endswith("/") or path.is_dir():
        suffix = suffixes(media)[0]
        writable(path / f"0{suffix}", media)
        with _folder(path):
            yield lambda samples: _save_each(samples, path, suffix, media)
    else:
        suffix = writable(path, media, count)
        with whole_file(followed(path)) as write:

            def save(samples: Samples) -> list[Path]:
                write(media_file(samples.media, suffix, media, note=samples.request, columns=samples.columns))
                return [path]

            yield save


def _save_each(samples: Samples, folder: Path, suffix: str, media: Media) -> list[Path]:
    files = []
    for index, label in enumerate(samples.labels):
        files.append(folder / (f"{index:03d}-{label}{suffix}" if label else f"{index:03d}{suffix}"))
        with whole_file(files[-1]) as write:
            note = {**samples.request, "sample": index}
            write(media_file(samples.media[index : index + 1], suffix, media, note=note))
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
