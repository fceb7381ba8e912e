"""The names of ``mmgen.runtime`` at the path where models written for mmgen 0.1 import them."""

from mmgen.runtime.base.errors import Cancelled, MmgenError

__all__ = ["Cancelled", "MmgenError"]
