"""Where models written for mmgen 0.1 find what is in ``mmgen.export`` now."""

from mmgen.export.base.model import Model

__all__ = ["Model"]
