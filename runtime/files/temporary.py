"""The system's folder for temporary files."""

import tempfile

from mmgen.runtime.base.errors import MmgenError


def temporary_place() -> str:
    """Return the folder for temporary files.

    Raises:
        MmgenError: none of the system's can be written.
    """
    try:
        return tempfile.gettempdir()
    except OSError as error:
        what = "there is no folder for temporary files that can be written"
        raise MmgenError(what, remedy="set TMPDIR to a folder that can be") from error
