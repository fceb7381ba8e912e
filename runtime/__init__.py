"""Play mmgen bundles: numpy and one backend, no torch.

What ``__all__`` names is promised; everything else may change with any release.
"""

from mmgen.runtime.base.errors import Cancelled, MmgenError
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.loop.results import Progress, Result, Timings
from mmgen.runtime.loop.stream import Stream
from mmgen.runtime.request.request import Request
from mmgen.runtime.storage.process import EDM, Diffusion, Flow, Masked
from mmgen.runtime.storage.schema import Condition, Defaults, Media

__all__ = [
    "EDM", "Cancelled", "Condition", "Defaults", "Diffusion", "Flow", "Generator", "Masked", "Media", "MmgenError",
    "Progress", "Request", "Result", "Stream", "Timings", "__version__", "load",
]  # fmt: skip


def __getattr__(name: str) -> str:
    """Look up the version when it is asked for: searching the installed packages takes milliseconds."""
    if name == "__version__":
        from importlib.metadata import version

        from mmgen.runtime.base.distribution import NAME

        return version(NAME)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
