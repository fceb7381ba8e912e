"""Float32 graphs to half precision, with float32 exceptions.  Imports ``base`` and ``hoisting``."""
