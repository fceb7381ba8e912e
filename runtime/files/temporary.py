"""Where the system keeps temporary files."""

import tempfile

from mmgen.runtime.base.errors import MmgenError


def temporary_place() -> str:
    """The folder for temporary files.

    Raises:
        MmgenError: none of those that the system has can be written.
    """
    try:
        return tempfile.gettempdir()
    except OSError as error:
        what = "there is no folder for temporary files that can be written"
        raise MmgenError(what, remedy="set TMPDIR to a folder that can be") from error
