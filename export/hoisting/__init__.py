"""Work that is the same in every step, moved out of the loop.  Imports ``base`` and ``tracing``."""
