"""What a grid runs always meets every pair of values, with few of its combinations."""

import itertools

from grid import pairwise


def test_every_pair_of_values_is_met_by_few_combinations() -> None:
    combinations = list(itertools.product("abc", range(3), (True, False, None), "xy"))
    chosen = pairwise(combinations)
    for first, second in itertools.combinations(range(4), 2):
        met = {(c[first], c[second]) for c in chosen}
        assert met == {(c[first], c[second]) for c in combinations}
    assert len(chosen) <= 12 < len(combinations)
