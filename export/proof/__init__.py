"""Comparisons of every graph, loop and medium with torch.  Imports all rooms but ``sources`` and ``networks``."""
