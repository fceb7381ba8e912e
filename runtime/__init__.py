"""Play mmgen bundles: numpy and one backend, no torch."""

from mmgen.runtime.base.errors import Cancelled, MmgenError
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.loop.results import Progress, Result, Timings
from mmgen.runtime.loop.stream import Stream

__all__ = ["Cancelled", "Generator", "MmgenError", "Progress", "Result", "Stream", "Timings", "load"]
