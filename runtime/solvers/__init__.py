"""Solvers: functions that make a whole run a table of numbers.  Imports ``storage``; ``request`` imports it."""
