"""Backends, which run graphs: ``protocol`` says what one has to implement, ``registry`` knows them by name.

Imports ``builds`` and ``storage``; a backend's own room imports this one and no other backend's.
"""
