"""Where models written for mmgen 0.1 find what is in ``mmgen.runtime`` now."""

from mmgen.runtime.base.errors import Cancelled, MmgenError

__all__ = ["Cancelled", "MmgenError"]
