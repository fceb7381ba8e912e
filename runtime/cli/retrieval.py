"""``mmgen embed`` and ``mmgen search``: files and texts as vectors, and those that are nearest to another one."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from mmgen.runtime.base.errors import MmgenError, shown
from mmgen.runtime.base.text_table import table
from mmgen.runtime.cli.options import backend_option, bundle_argument, key_option, threads_option
from mmgen.runtime.cli.terminal import Command, Progress, json_option, show
from mmgen.runtime.files.atomic import followed, whole_file
from mmgen.runtime.files.numpy_files import NoArray, read_npz
from mmgen.runtime.files.regular import open_regular
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.media.write import SUFFIXES
from mmgen.runtime.storage.bundle import embedded
from mmgen.runtime.storage.schema import Condition

AT_ONCE = 8  # files that are embedded in one call
LONGEST = 1 << 20  # bytes of a file of texts
AGAIN = "make it again with mmgen embed"
as_option = click.option("--as", "name", metavar="NAME",
                         help="Input of the bundle that they are; else their kinds of files tell.")  # fmt: skip


@click.command(cls=Command)
@bundle_argument
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@as_option
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="INDEX.npz",
              help="Where their vectors and names go, for mmgen search.")  # fmt: skip
@click.option("--resize", is_flag=True, help="Fit size, length and rate of media to what the bundle takes.")
@backend_option
@threads_option
@key_option
@json_option
def embed(
    folder: Path, files: tuple[Path, ...], name: str | None, output: Path, resize: bool, backend: str,
    threads: int | None, public_key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Embed files as vectors, for mmgen search.  Of a .txt file, each line is a text of its own."""
    if output.suffix != ".npz":
        raise MmgenError(f"output {output}", wanted="NAME.npz")
    names: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    with Progress() as progress, whole_file(followed(output)) as write:
        progress(f"loading {folder}", 0.0)
        with load(folder, backend, threads=threads, public_key=public_key) as generator:
            taken = [(_input_of(generator, file, name), file) for file in files]
            for i in range(0, len(taken), AT_ONCE):
                progress("embedding", i / len(taken))
                for condition, group in _groups(taken[i : i + AT_ONCE]):
                    given = [text for file in group for text in _texts(file)] if condition.kind == "text" else group
                    vectors.append(generator.embed(**{condition.name: given}, resize=resize))
                    names += [str(each) for each in given]
        content = io.BytesIO()
        np.savez(content, vectors=np.concatenate(vectors), names=np.array(names))
        write(content.getvalue())
    show({"file": str(output), "count": len(names)}, as_json, lambda: f"{output}: {len(names)} vectors")


@click.command(cls=Command)
@bundle_argument
@click.argument("index", metavar="INDEX.npz", type=click.Path(path_type=Path))
@click.argument("query", metavar="QUERY")
@as_option
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="How many to show.")
@click.option("--resize", is_flag=True, help="Fit size, length and rate of media to what the bundle takes.")
@backend_option
@threads_option
@key_option
@json_option
def search(
    folder: Path, index: Path, query: str, name: str | None, top: int, resize: bool, backend: str,
    threads: int | None, public_key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what mmgen embed put into an index and is nearest to QUERY: a file, or else a text."""
    vectors, names = read_index(index)
    with Progress() as progress:
        progress(f"loading {folder}", 0.0)
        with load(folder, backend, threads=threads, public_key=public_key) as generator:
            if Path(query).is_file():
                condition = _input_of(generator, Path(query), name)
            else:
                condition = _of_kind(generator, "text", name, f"query {shown(query)}")
            given: Any = query if condition.kind != "text" or not Path(query).is_file() else _texts(Path(query))
            (vector, *_) = generator.embed(**{condition.name: given}, resize=resize)
    if vector.shape != vectors.shape[1:]:
        got, wanted = f"{vectors.shape[1]} numbers a vector", f"{len(vector)}, as of this bundle"
        raise MmgenError(f"{index}", got=got, wanted=wanted, remedy=AGAIN)
    cosines = vectors @ vector
    best = np.argsort(-cosines, kind="stable")[:top]
    record = {"query": query, "found": [{"name": names[i], "cosine": float(cosines[i])} for i in best]}
    show(record, as_json, lambda: table([("cosine", "name"), *((f"{cosines[i]:.3f}", names[i]) for i in best)]))


def read_index(path: Path) -> tuple[NDArray[np.float32], list[str]]:
    """Read vectors (n, D) of length 1 and their n names.

    Raises:
        MmgenError: it can't be read, or isn't what ``mmgen embed`` writes.
    """
    wanted = "an index that mmgen embed wrote"
    try:
        with open_regular(path, wanted=wanted) as (file, size):
            arrays = dict(read_npz(file, size, "fU"))
    except (NoArray, ValueError, MemoryError) as error:
        raise MmgenError(f"{path} can't be read ({error})", wanted=wanted, remedy=AGAIN) from error
    vectors, names = arrays.get("vectors"), arrays.get("names")
    fits = vectors is not None and names is not None and vectors.ndim == 2 and names.shape == vectors.shape[:1]
    if vectors is None or names is None or not fits or names.dtype.kind != "U" or vectors.dtype != np.float32:
        raise MmgenError(f"{path} is no index", wanted=wanted, remedy=AGAIN)
    return vectors, names.tolist()


def _input_of(generator: Generator, file: Path, name: str | None) -> Condition:
    """Return the input that a file is for: the named one, or the only one of a kind that such files have."""
    kinds = [kind for kind, suffixes in SUFFIXES.items() if file.suffix.lower() in suffixes and file.suffix != ".npy"]
    found = [each for kind in kinds for each, _ in embedded(generator.bundle).values() if each.kind == kind]
    if name is None and len(found) == 1:
        return found[0]
    return _of_kind(generator, "", name, str(file))


def _of_kind(generator: Generator, kind: str, name: str | None, what: str) -> Condition:
    known = embedded(generator.bundle)
    found = [each for each, _ in known.values() if each.name == name or (name is None and each.kind == kind)]
    if len(found) != 1:
        wanted = " or ".join(f"--as {each}" for each in known) or "a bundle with embeddings"
        raise MmgenError(f"{what}: its input" if name is None else f"--as {name}", wanted=wanted)
    return found[0]


def _groups(taken: Sequence[tuple[Condition, Path]]) -> list[tuple[Condition, list[Path]]]:
    """Group neighbours that are for the same input."""
    groups: list[tuple[Condition, list[Path]]] = []
    for condition, file in taken:
        if not groups or groups[-1][0] != condition:
            groups.append((condition, []))
        groups[-1][1].append(file)
    return groups


def _texts(file: Path) -> list[str]:
    """Read the lines of a file that aren't empty."""
    with open_regular(file, wanted="a file of texts") as (opened, size):
        if size > LONGEST:
            raise MmgenError(f"{file}", got=f"{size} bytes", wanted=f"at most {LONGEST}")
        content = opened.read()
    try:
        lines = [line.strip() for line in content.decode("utf-8").splitlines()]
    except UnicodeError as error:
        raise MmgenError(f"{file} is no text ({error})", wanted="UTF-8") from error
    if not any(lines):
        raise MmgenError(f"{file} is empty", wanted="a text on each line")
    return [line for line in lines if line]
