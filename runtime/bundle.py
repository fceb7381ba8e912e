"""The names of ``mmgen.runtime`` at the path where models written for mmgen 0.1 import them."""

from mmgen.runtime.storage.bundle import read_bundle
from mmgen.runtime.storage.schema import Bundle, Condition, Defaults, Media

__all__ = ["Bundle", "Condition", "Defaults", "Media", "read_bundle"]
