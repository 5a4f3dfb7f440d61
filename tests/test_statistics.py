"""Intervals against published values and by simulation."""

import numpy as np
import pytest

from gatito.eval import statistics
from gatito.eval.statistics import (
    bootstrap_interval,
    interquartile_mean,
    paired_interval,
    quartile_weights,
    resampled_means,
    wilson_interval,
)


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


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], 3.0),
        ([1.0, 2.0], 1.5),
        ([0.0, 3.0, 9.0], 0.0 / 6 + 3.0 * 2 / 3 + 9.0 / 6),
        ([9.0, 1.0, 2.0, -50.0], 1.5),
        ([0.0, 1.0, 2.0, 3.0, 100.0], (0.75 * 1.0 + 1.0 * 2.0 + 0.75 * 3.0) / 2.5),
        ([*range(8)], 3.5),
    ],
)
def test_interquartile_means_weigh_what_lies_between_the_quartiles(values: list[float], expected: float) -> None:
    assert interquartile_mean(np.array(values)) == pytest.approx(expected)
    assert quartile_weights(len(values)).sum() == pytest.approx(1.0)


def test_the_interquartile_mean_is_that_of_every_value_written_four_times() -> None:
    """Of 4 N values the middle 2 N are a whole number, so that a plain mean of them is right."""
    values = np.random.default_rng(0).normal(size=7)
    repeated = np.sort(np.repeat(values, 4))
    assert interquartile_mean(values) == pytest.approx(repeated[7:21].mean())


def test_resampled_means_are_those_of_draws_with_replacement() -> None:
    means, interquartile = resampled_means(np.array([0.0, 1.0]))
    shares = [(means == x).mean() for x in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert (means == interquartile).all()  # of two values
    values = np.random.default_rng(0).normal(size=30)
    means, interquartile = resampled_means(values)
    assert means.std() == pytest.approx(values.std() / np.sqrt(30), rel=0.05)
    assert interquartile.mean() == pytest.approx(interquartile_mean(values), abs=0.05)
    assert np.isnan(resampled_means(np.array([1.0]))).all()


def test_many_values_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=40)
    whole = resampled_means(values)[0]
    monkeypatch.setattr(statistics, "CHUNK", 40 * 999)
    parts = resampled_means(values)[0]
    assert parts.shape == whole.shape
    assert parts.std() == pytest.approx(whole.std(), rel=0.03)


def test_a_paired_interval_adds_the_squares_of_wilsons_less_their_correlation() -> None:
    """By hand: rates 38 / 50 and 48 / 50, and the correlation (36 x 0 - 2 x 12) / sqrt(38 x 12 x 48 x 2)."""
    (low_p, high_p), (low_q, high_q), phi = (0.6259, 0.8570), (0.8654, 0.9890), -0.1147
    below, above = (0.96 - low_q, high_p - 0.76), (high_q - 0.96, 0.76 - low_p)
    expected = (
        0.2 - (below[0] ** 2 + below[1] ** 2 - 2 * phi * below[0] * below[1]) ** 0.5,
        0.2 + (above[0] ** 2 + above[1] ** 2 - 2 * phi * above[0] * above[1]) ** 0.5,
    )
    assert paired_interval(36, 2, 12, 0) == pytest.approx(expected, abs=2e-4)
    assert paired_interval(36, 12, 2, 0) == pytest.approx((-expected[1], -expected[0]), abs=2e-4)


def test_a_paired_interval_is_not_empty_where_all_pairs_agree() -> None:
    low, high = paired_interval(20, 0, 0, 0)
    assert low == pytest.approx(-high)
    assert 0.1 < high < 0.2


def test_paired_intervals_cover_the_difference_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        first = rng.random(40) < 0.6
        second = np.where(rng.random(40) < 0.7, first, rng.random(40) < 0.9)  # 0.69, correlated
        cells = (first & second, first & ~second, ~first & second, ~first & ~second)
        low, high = paired_interval(*(int(cell.sum()) for cell in cells))
        covered += low <= 0.09 <= high
    assert 372 <= covered <= 396
