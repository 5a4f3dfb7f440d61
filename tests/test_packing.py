"""Packed rows: segments, positions, padding, and patches that are stored once."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from gatito.data.packing import distinct_patches, pack
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, text_tokens
from gatito.tokenizers.patches import mean_positions
from gatito.tokenizers.trunk import Trunk

FLAT = Trunk(vocabulary=Vocabulary(text_size=300))


@pytest.fixture(scope="module")
def layout(vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    """Two patches and a separator, then one action: four tokens per timestep."""
    space = spaces.Box(0, 255, (16, 32, 3), np.uint8)
    return Layout.from_spaces(space, spaces.Discrete(3), vocabulary=vocabulary, text=text)


def episode(layout: Layout, values: list[int]) -> TokenSequence:
    """One timestep per value; its left patch has that value, its right one is black."""
    images = np.zeros((len(values), 16, 32, 3), np.uint8)
    images[:, :, :16] = np.array(values, np.uint8)[:, None, None, None]
    return layout.episode_tokens(images, np.array(values) % 3)


def test_segments_and_positions_in_full(layout: Layout) -> None:
    batch = pack([[episode(layout, [1]), episode(layout, [2, 3])], [episode(layout, [4])]], FLAT, length=13)
    assert batch.segments.tolist() == [[1] * 4 + [2] * 8 + [0], [1] * 4 + [0] * 9]
    assert batch.positions.tolist() == [[*range(4), *range(8), 0], [*range(4)] + [0] * 9]
    step = [2349, 2349, 2348]
    assert batch.input_ids[0].tolist() == [*step, 1325, *step, 1326, *step, 1324, 0]
    assert batch.input_ids[1].tolist() == [*step, 1325] + [0] * 9
    assert batch.local_positions[0].tolist() == [0, 1, 2, 512] * 3 + [0]
    assert batch.loss_mask[0].tolist() == [False, False, False, True] * 3 + [False]
    assert {t.dtype for n, t in batch.tensors().items() if n not in ("loss_mask", "patches")} == {torch.int64}
    assert (batch.loss_mask.dtype, batch.patches.dtype) == (torch.bool, torch.uint8)


def test_padding_is_never_a_target_and_belongs_to_no_segment(layout: Layout) -> None:
    batch = pack([[episode(layout, [1])], [episode(layout, [1, 2, 3])]], FLAT)
    assert batch.input_ids.shape == (2, 12)  # the longest row
    padding = batch.segments == 0
    assert padding.sum() == 8
    assert not batch.loss_mask[padding].any()
    assert (batch.input_ids[padding] == 0).all()


def test_distinct_patches_map_back_to_the_same_pixels(layout: Layout) -> None:
    rows = [[episode(layout, [1, 2, 1])], [episode(layout, [2, 7]), episode(layout, [0])]]
    batch = pack(rows, FLAT)
    expected = np.concatenate([sequence.patches for row in rows for sequence in row])
    assert len(expected) == 12
    assert len(batch.patches) == 4  # 0, 1, 2 and 7
    np.testing.assert_array_equal(batch.patches[batch.patch_indices].numpy(), expected)
    is_patch = batch.input_ids == layout.vocabulary.patch
    assert is_patch.sum() == len(batch.patch_indices) == len(batch.patch_positions)


def test_patches_that_differ_in_one_pixel_are_kept_apart() -> None:
    patches = np.zeros((3, 16, 16, 3), np.uint8)
    patches[1, 15, 15, 2] = 1
    distinct, indices = distinct_patches(patches)
    assert indices.tolist() == [0, 1, 0]
    np.testing.assert_array_equal(distinct, patches[:2])


def test_many_random_patches_map_back(layout: Layout) -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    patches = pool[rng.integers(20, size=200)]
    distinct, indices = distinct_patches(patches)
    assert len(distinct) == 20
    np.testing.assert_array_equal(distinct[indices], patches)


def test_patches_are_numbered_by_the_order_in_which_they_are_taken() -> None:
    patches = np.repeat(np.array([5, 5, 7, 9, 7], np.uint8), 16 * 16 * 3).reshape(5, 16, 16, 3)
    distinct, indices = distinct_patches(patches, np.array([3, 4, 0, 2, 1]))
    assert distinct[:, 0, 0, 0].tolist() == [9, 7, 5]
    assert indices.tolist() == [0, 1, 2, 1, 2]
    assert distinct_patches(patches)[1].tolist() == [0, 0, 1, 2, 1]


def test_rows_without_patches_pack_to_empty_patch_tensors(text: TextTokenizer) -> None:
    batch = pack([[text_tokens("a class", text)]], FLAT)
    assert batch.patches.shape == (0, 16, 16, 3)
    assert batch.patch_indices.shape == (0,)
    assert batch.patch_positions.shape == (0, 2)


def test_positions_are_means_when_acting_and_samples_in_training(layout: Layout) -> None:
    sequence = episode(layout, [1, 2, 3, 4])
    acting = pack([[sequence]], FLAT)
    assert acting.patch_positions.tolist() == mean_positions(sequence.patch_intervals).tolist()
    assert acting.patch_positions.tolist() == [[63, 31], [63, 95]] * 4
    draws = [pack([[sequence]], FLAT, rngs=[np.random.default_rng(s)]).patch_positions for s in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    for places in draws:
        assert (places[::2, 1] < 64).all()
        assert (places[1::2, 1] >= 64).all()


def test_a_row_s_positions_depend_on_its_own_generator_only(layout: Layout) -> None:
    a, b = episode(layout, [1, 2]), episode(layout, [3])
    alone = pack([[b]], FLAT, rngs=[np.random.default_rng(5)]).patch_positions
    together = pack([[a], [b]], FLAT, rngs=[np.random.default_rng(4), np.random.default_rng(5)]).patch_positions
    assert torch.equal(together[-2:], alone)


def test_to_keeps_every_field(layout: Layout) -> None:
    batch = pack([[episode(layout, [1, 2])]], FLAT)
    moved = batch.to(torch.device("cpu"))
    assert all(torch.equal(value, moved.tensors()[name]) for name, value in batch.tensors().items())
    assert len(moved.tensors()) == 8
