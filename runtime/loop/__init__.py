"""The sampling loop: a request's memory, its rows, and what they make.  Imports ``request`` and ``backends``."""
