"""Pillow and PyAV, imported where a file needs them, with what to install where they aren't there."""

from types import ModuleType

from mmgen.runtime.base.distribution import extra, unloaded
from mmgen.runtime.base.errors import MmgenError


def pillow(what: str = "pictures are read", instead: str = "give a .npy file") -> ModuleType:
    """Import Pillow, which knows pictures and their animations.

    Args:
        what: needs it, as the beginning of a sentence: "a.png: pictures are read".
        instead: what can be done without it.

    Raises:
        MmgenError: it isn't installed, or can't be loaded.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
        import PIL.ImageSequence
        import PIL.PngImagePlugin
    except ImportError as error:
        raise _missing(what, "Pillow", error, extra("images"), instead) from error
    return PIL


def pyav(what: str = "sound and film are read", instead: str = "give a .npy file") -> ModuleType:
    """Import PyAV, which knows film and sound as FFmpeg does; it is silent unless the program has it speak.

    Args:
        what, instead: as for ``pillow``.

    Raises:
        MmgenError: it isn't installed, or can't be loaded.
    """
    try:
        import av
    except ImportError as error:
        raise _missing(what, "PyAV", error, extra("media"), instead) from error
    return av


def _missing(what: str, library: str, error: ImportError, install: str, instead: str) -> MmgenError:
    remedy = f"{install}, or {instead}"
    if isinstance(error, ModuleNotFoundError):
        return MmgenError(f"{what} with the package {library}", got="none", remedy=remedy)
    return MmgenError(f"{what} with the package {library}: {unloaded(library, error, remedy)}")
