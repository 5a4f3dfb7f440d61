"""Bins and mu-law: exact at the edges."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gatito.tokenizers.scalars import from_bins, mu_law, mu_law_inverse, to_bins

UNIT = st.floats(-1.0, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1023),
        (-1.0, 0),
        (0.0, 512),
        (-0.0, 512),
        (0.5, 768),
        (-0.5, 256),
        (1.0 - 1 / 512, 1023),
        (-1.0 + 1 / 512, 1),
        (7.0, 1023),
        (-7.0, 0),
        (np.inf, 1023),
        (-np.inf, 0),
    ],
)
def test_values_land_in_their_bin(value: float, expected: int) -> None:
    assert to_bins(np.array([value])).tolist() == [expected]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_ulp_either_side_of_one_stays_in_the_range(dtype: type) -> None:
    one = dtype(1.0)
    around = np.array([np.nextafter(one, dtype(0)), one, np.nextafter(one, dtype(2))], dtype)
    assert len(set(around.tolist())) == 3
    assert to_bins(around).tolist() == [1023, 1023, 1023]
    assert to_bins(-around).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_ulp_under_an_inner_edge_is_the_bin_below(dtype: type) -> None:
    edges = (np.arange(1, 1024) / 512 - 1).astype(dtype)  # exact in both dtypes
    below = np.nextafter(edges, dtype(-2))
    above = np.nextafter(edges, dtype(2))
    assert (below < edges).all()
    np.testing.assert_array_equal(to_bins(edges), np.arange(1, 1024))
    np.testing.assert_array_equal(to_bins(above), np.arange(1, 1024))
    np.testing.assert_array_equal(to_bins(below), np.arange(0, 1023))


def test_bins_decode_to_their_centres() -> None:
    assert from_bins(np.array([0, 511, 512, 1023])).tolist() == [-1 + 1 / 1024, -1 / 1024, 1 / 1024, 1 - 1 / 1024]


def test_every_bin_comes_back() -> None:
    bins = np.arange(1024)
    np.testing.assert_array_equal(to_bins(from_bins(bins)), bins)
    np.testing.assert_array_equal(to_bins(from_bins(bins).astype(np.float32)), bins)


@given(UNIT)
@example(1.0)
@example(-1.0)
@example(0.0)
def test_a_value_comes_back_within_half_a_bin(value: float) -> None:
    assert abs(from_bins(to_bins(np.array([value])))[0] - value) <= 1 / 1024


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 0.0),
        (256.0, 1.0),
        (-256.0, -1.0),
        (1.0, 0.4546744),  # log(101) / log(25601)
        (-1.0, -0.4546744),
        (0.01, 0.0682878),  # log(2) / log(25601)
        (10.0, 0.6806396),  # log(1001) / log(25601)
    ],
)
def test_mu_law_has_mu_100_and_m_256(value: float, expected: float) -> None:
    assert mu_law(np.array([value]))[0] == pytest.approx(expected, abs=1e-7)


def test_values_beyond_256_are_clipped_by_the_bins() -> None:
    assert to_bins(mu_law(np.array([256.0, 1e9, -1e9, 255.0]))).tolist() == [1023, 1023, 0, 1023]
    assert to_bins(mu_law(np.array([250.0]))).tolist() == [1022]


@given(st.floats(-1e6, 1e6))
def test_mu_law_inverse_undoes_mu_law(value: float) -> None:
    assert mu_law_inverse(mu_law(np.array([value])))[0] == pytest.approx(value, rel=1e-9, abs=1e-12)


@given(UNIT)
def test_mu_law_undoes_its_inverse(value: float) -> None:
    assert mu_law(mu_law_inverse(np.array([value])))[0] == pytest.approx(value, abs=1e-12)


@given(UNIT, UNIT)
def test_mu_law_keeps_the_order_and_the_sign(a: float, b: float) -> None:
    low, high = mu_law(np.array(sorted([256 * a, 256 * b])))
    assert low <= high
    assert -mu_law(np.array([-a]))[0] == mu_law(np.array([a]))[0]
