"""How far two programs may differ: one table, each limit with the measured error it was set from.

Relative RMS is |a - b| / |b|, both in the 2-norm, unless a comment says otherwise.
"""

LIMITS: dict[str, float] = {}
