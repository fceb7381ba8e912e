"""The sampling loop: a request's memory, its evaluations, and their results.  Imports ``request`` and ``backends``."""
