"""The expert filter, by hand."""

import numpy as np
import pytest

from gatito.data.filter import expert_return, is_expert
from gatito.errors import UserError


@pytest.mark.parametrize(
    ("num_episodes", "window"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (30, 3), (100, 10), (9_999, 999)]
)
def test_the_window_is_a_tenth_of_the_episodes(num_episodes: int, window: int) -> None:
    returns = np.zeros(num_episodes)
    returns[num_episodes // 2 : num_episodes // 2 + window] = 8.0  # exactly as long as the window
    assert expert_return(returns) == pytest.approx(8.0)
    returns[num_episodes // 2] = 0.0  # one episode less than the window
    assert expert_return(returns) == pytest.approx(8.0 * (window - 1) / window)


def test_the_window_has_at_most_1000_episodes() -> None:
    returns = np.zeros(20_000)
    returns[5_000:6_000] = 3.0
    assert expert_return(returns) == pytest.approx(3.0)
    returns[5_000:6_000] = 0.0
    returns[5_000:7_000] = 3.0
    assert expert_return(returns) == pytest.approx(3.0)


def test_the_expert_is_the_best_stretch_in_collection_order() -> None:
    returns = np.array([9.0, 0, 0, 0, 0, 5, 6, 0, 0, 0] + [0.0] * 10)  # N = 20, W = 2
    assert expert_return(returns) == 5.5  # (5 + 6) / 2, not the mean of the two best
    assert expert_return(returns[::-1]) == 5.5


def test_the_paper_s_formula_where_random_is_0() -> None:
    returns = np.array([10.0, 8.0, 7.99, 0.0, 9.0])  # W = 1, expert 10
    assert is_expert(returns, np.full(len(returns), "x"), 0.0, 0.8).tolist() == [True, True, False, False, True]


def test_negative_returns_are_filtered_on_the_normalised_scale() -> None:
    # Pendulum: expert -140, random -1200. 80 % of -140 is -112, which would drop the expert itself.
    returns = np.array([-140.0, -300.0, -352.0, -353.0, -1200.0])
    assert is_expert(returns, np.full(len(returns), "x"), -1200.0, 0.8).tolist() == [True, True, True, False, False]


def test_a_dataset_no_better_than_random_is_refused() -> None:
    with pytest.raises(UserError, match=r"its best stretch returns 2, no more than the random policy's 2; .* null"):
        is_expert(np.array([1.0, 2.0, -5.0]), np.full(len(np.array([1.0, 2.0, -5.0])), "x"), 2.0, 0.8)


def test_a_threshold_of_0_keeps_what_is_at_least_random() -> None:
    assert is_expert(np.array([5.0, 1.0, 0.9]), np.full(len(np.array([5.0, 1.0, 0.9])), "x"), 1.0, 0.0).tolist() == [
        True,
        True,
        False,
    ]


def test_where_agents_take_turns_the_best_agent_is_the_expert() -> None:
    returns = np.array([100.0, 1.0, 2.0, 0.0, 3.0] * 20)
    agents = np.array(["expert", *["random"] * 4] * 20)
    assert expert_return(returns) < 30
    np.testing.assert_array_equal(is_expert(returns, agents, 0.0, 0.8), agents == "expert")
