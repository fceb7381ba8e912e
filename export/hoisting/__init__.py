"""Work that is the same in every step, moved to before the loop.  Imports ``base`` and ``tracing``."""
