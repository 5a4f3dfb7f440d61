"""Taking turns by shares."""

from collections import Counter

import numpy as np

from gatito.data.shares import edges_of, whose_turn


def test_every_stretch_of_turns_has_nearly_the_shares() -> None:
    edges = edges_of(np.array([5.0, 3.0, 2.0]))
    for first in (0, 17, 1000):
        turns = Counter(whose_turn(edges, turn, phase=0.37) for turn in range(first, first + 100))
        assert all(abs(turns[i] - share) <= 2 for i, share in enumerate((50, 30, 20)))


def test_the_last_edge_is_nobody_s_end() -> None:
    edges = edges_of(np.array([0.1] * 10))  # adds up to a little less than 1
    assert {whose_turn(edges, turn) for turn in range(5000)} == set(range(10))
