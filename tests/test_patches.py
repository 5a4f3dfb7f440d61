"""Images to patches and their places."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatito.tokenizers.patches import (
    NUM_PATCH_POSITIONS,
    from_patches,
    grid,
    mean_positions,
    patch_intervals,
    sample_positions,
    to_patches,
)


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_patches_are_cut_in_raster_order() -> None:
    images = np.zeros((1, 32, 48, 3), np.uint8)
    for r in range(2):
        for c in range(3):
            images[0, 16 * r : 16 * (r + 1), 16 * c : 16 * (c + 1)] = 10 * r + c
    patches = to_patches(images)
    assert patches.shape == (1, 6, 16, 16, 3)
    assert [sorted(set(patch.ravel().tolist())) for patch in patches[0]] == [[0], [1], [2], [10], [11], [12]]


def test_a_pixel_keeps_its_place_inside_its_patch() -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[1, 16 + 3, 5] = (7, 8, 9)
    patches = to_patches(images)
    assert patches[1, 2, 3, 5].tolist() == [7, 8, 9]
    assert np.count_nonzero(patches) == 3


def test_sides_are_padded_with_zeros_at_the_bottom_and_the_right() -> None:
    patches = to_patches(np.full((1, 17, 20, 3), 255, np.uint8))
    assert grid(17, 20) == (2, 2)
    assert (patches[0, 0] == 255).all()
    assert (patches[0, 1][:, :4] == 255).all()
    assert (patches[0, 1][:, 4:] == 0).all()
    assert (patches[0, 2][:1] == 255).all()
    assert (patches[0, 2][1:] == 0).all()


def test_one_channel_is_repeated_three_times() -> None:
    images = pixels(2, 16, 16, 1)
    np.testing.assert_array_equal(to_patches(images)[:, 0], np.repeat(images, 3, axis=-1))


def test_alpha_is_applied_over_black() -> None:
    image = np.array([[[[200, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 128], [255, 255, 255, 1]]]], np.uint8)
    patch = to_patches(image)[0, 0]
    assert patch[0, :4].tolist() == [[0, 0, 0], [200, 100, 50], [100, 50, 25], [1, 1, 1]]


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
@settings(max_examples=50)
def test_from_patches_undoes_to_patches(height: int, width: int, channels: int) -> None:
    images = pixels(2, height, width, channels)
    np.testing.assert_array_equal(from_patches(to_patches(images), (height, width, channels)), images)


def test_intervals_of_a_small_grid_are_exact() -> None:
    expected = [
        [0, 64, 0, 43],
        [0, 64, 43, 85],
        [0, 64, 85, 128],
        [64, 128, 0, 43],
        [64, 128, 43, 85],
        [64, 128, 85, 128],
    ]
    assert patch_intervals(32, 48).tolist() == expected


@given(st.integers(1, 8200), st.integers(1, 100))
@settings(max_examples=50)
def test_intervals_cover_0_to_128_in_order(height: int, width: int) -> None:
    intervals = patch_intervals(height, width).astype(int)
    rows, columns = grid(height, width)
    assert intervals.shape == (rows * columns, 4)
    assert (intervals[:, 0::2] < intervals[:, 1::2]).all()
    assert (intervals[0, [0, 2]].tolist(), intervals[-1, [1, 3]].tolist()) == ([0, 0], [128, 128])
    if rows <= NUM_PATCH_POSITIONS:  # without gaps and without overlap
        np.testing.assert_array_equal(intervals[columns:, 0], intervals[:-columns, 1])
    np.testing.assert_array_equal(intervals[1:columns, 2], intervals[: columns - 1, 3])


@given(st.integers(1, 8200), st.integers(0, 2**32))
@settings(max_examples=50)
def test_positions_lie_inside_their_interval_and_the_table(height: int, seed: int) -> None:
    intervals = patch_intervals(height, 56)
    for places in (sample_positions(intervals, np.random.default_rng(seed)), mean_positions(intervals)):
        assert (places >= intervals[:, 0::2]).all()
        assert (places < intervals[:, 1::2]).all()
        assert places.min() >= 0
        assert places.max() < NUM_PATCH_POSITIONS


def test_sampled_positions_reach_all_of_the_interval_evenly() -> None:
    intervals = np.repeat(np.array([[10, 14, 0, 128]], np.uint8), 8000, axis=0)
    places = sample_positions(intervals, np.random.default_rng(0))
    counts = np.bincount(places[:, 0], minlength=14)[10:]
    assert len(counts) == 4
    assert (abs(counts - 2000) < 200).all()
    assert set(places[:, 1].tolist()) == set(range(128))


def test_mean_positions_are_the_middle_of_the_interval() -> None:
    intervals = np.array([[0, 128, 0, 64], [64, 128, 85, 128], [3, 4, 10, 13]], np.uint8)
    assert mean_positions(intervals).tolist() == [[63, 31], [95, 106], [3, 11]]


@pytest.mark.parametrize("shape", [(16, 16, 3), (20, 33, 3), (8, 8, 1)])
def test_no_patch_is_empty_where_an_image_fits_less_than_one(shape: tuple[int, int, int]) -> None:
    assert to_patches(pixels(3, *shape)).shape[1] == len(patch_intervals(*shape[:2])) >= 1
