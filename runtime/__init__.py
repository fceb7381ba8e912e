"""Play mmgen bundles: numpy and one backend, no torch."""

from mmgen.runtime.errors import MmgenError
from mmgen.runtime.generator import Generator, load
from mmgen.runtime.results import Progress, Result, Timings

__all__ = ["Generator", "MmgenError", "Progress", "Result", "Timings", "load"]
