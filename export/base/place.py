"""A bundle's folder that appears whole or not at all."""

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
    """A folder to write in, which becomes ``out`` when the block ends well.

    On an error, Ctrl-C or SIGTERM nothing of it stays, and a bundle that was at ``out`` is as it was.  The engines of
    an older bundle go over to the new one: they are known by what they were made from, so those of graphs that did
    not change can still be used.  Whenever the process is killed, there is the one bundle or the other, with them.

    Args:
        out: the bundle's folder: nothing, or an older bundle.
        wanted_bytes: free space to ask for.

    Raises:
        MmgenError: ``out`` is something else, can't be written, or has too little space.
    """
    with whole_folder(
        followed(out), wanted_bytes=wanted_bytes, remedy=ELSEWHERE, check=_nothing_or_bundle, carry=(ENGINES,)
    ) as folder:
        yield folder


def _nothing_or_bundle(out: Path) -> None:
    if out.exists() and not (out / MANIFEST).is_file():
        raise MmgenError(f"{out} is there and is not a bundle", remedy=f"move it away, or {ELSEWHERE}")
