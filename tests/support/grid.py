"""Grids of parameters: what every pair of values needs is always run, the rest when it is asked for."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def grid(**axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize over all combinations; those that no pair of values needs are marked ``grid``."""
    combinations = list(itertools.product(*axes.values()))
    needed = pairwise(combinations)
    return pytest.mark.parametrize(
        tuple(axes), [pytest.param(*c, marks=[] if c in needed else pytest.mark.grid) for c in combinations]
    )


def pairwise(combinations: list[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Choose combinations, as few as a greedy choice finds, that have every pair of values which some have."""

    def pairs(combination: tuple[Any, ...]) -> set[Any]:
        return set(itertools.combinations(enumerate(combination), 2))

    left = set().union(*map(pairs, combinations))
    chosen: set[tuple[Any, ...]] = set()
    while left:
        best = max(combinations, key=lambda c: len(pairs(c) & left))
        chosen.add(best)
        left -= pairs(best)
    return chosen
