"""Intervals against published values and by simulation."""

import numpy as np
import pytest

from gatito.eval.statistics import bootstrap_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998, table I, method 3 (score, without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_intervals_are_the_published_ones(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_intervals_mirror_and_shrink() -> None:
    low, high = wilson_interval(7, 50)
    assert wilson_interval(43, 50) == pytest.approx((1 - high, 1 - low))
    wider = wilson_interval(7, 50)[1] - wilson_interval(7, 50)[0]
    assert wilson_interval(70, 500)[1] - wilson_interval(70, 500)[0] < wider / 2.5


def test_bootstrap_intervals_cover_the_mean_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = bootstrap_interval(rng.normal(3.0, 2.0, 50))
        covered += low <= 3.0 <= high
    assert 88 <= covered <= 99


def test_a_bootstrap_interval_is_that_of_the_normal_approximation_for_many_values() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 400)
    half = 1.96 * values.std() / 20
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_bootstrap_intervals_depend_on_values_and_seed_alone() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 30)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    assert bootstrap_interval(np.full(20, 0.7)) == pytest.approx((0.7, 0.7))
