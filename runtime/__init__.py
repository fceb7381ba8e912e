"""Play mmgen bundles: numpy and one backend, no torch."""

from mmgen.runtime.errors import Cancelled, MmgenError
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.results import Progress, Result, Timings
from mmgen.runtime.stream import Stream

__all__ = ["Cancelled", "Generator", "MmgenError", "Progress", "Result", "Stream", "Timings", "load"]
