"""The names of ``mmgen.runtime`` at the path where models written for mmgen 0.1 import them."""

from mmgen.runtime.storage.process import Diffusion, Flow, Masked

__all__ = ["Diffusion", "Flow", "Masked"]
