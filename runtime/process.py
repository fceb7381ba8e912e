"""Where models written for mmgen 0.1 find what is in ``mmgen.runtime`` now."""

from mmgen.runtime.storage.process import Diffusion, Flow, Masked

__all__ = ["Diffusion", "Flow", "Masked"]
