"""A bundle's folder, put in place by one rename when it is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmgen.runtime.base.errors import MmgenError
from mmgen.runtime.builds.engine_build import ENGINES
from mmgen.runtime.files.atomic import followed
from mmgen.runtime.files.folders import whole_folder
from mmgen.runtime.storage.schema import MANIFEST

ELSEWHERE = "choose another place with -o"


@contextmanager
def placed(out: Path, wanted_bytes: int) -> Iterator[Path]:
    """Yield a folder to write in, which becomes ``out`` when the block ends without an error.

    On an error, Ctrl-C or SIGTERM nothing of it remains, and an older bundle at ``out`` is unchanged.  The engines of
    an older bundle move to the new one: they are identified by what they were built from, so those of graphs that did
    not change stay usable.  Whenever the process is killed, ``out`` is either the old or the new bundle, with them.

    Args:
        out: the bundle's folder: nothing, or an older bundle.
        wanted_bytes: free space required.

    Raises:
        MmgenError: ``out`` is something else, can't be written, or has too little space.
    """
    with whole_folder(
        followed(out), wanted_bytes=wanted_bytes, remedy=ELSEWHERE, check=_nothing_or_bundle, carry=(ENGINES,)
    ) as folder:
        yield folder


def _nothing_or_bundle(out: Path) -> None:
    if out.exists() and not (out / MANIFEST).is_file():
        raise MmgenError(f"{out} exists and is not a bundle", remedy=f"move it away, or {ELSEWHERE}")
