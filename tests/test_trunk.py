"""Which positions the trunk sees: one rule, for counting, cutting, packing and acting."""

import numpy as np
import pytest
from gymnasium import spaces

from gatito.data.packing import pack
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens
from gatito.tokenizers.sequence import concatenate, observations_predicted
from gatito.tokenizers.trunk import Trunk

SPACE = spaces.Dict(at=spaces.Discrete(4), image=spaces.Box(0, 255, (16, 32, 3), np.uint8), mission=spaces.Text(24))
ACTION = spaces.MultiDiscrete([3, 2])
T = 4
MISSIONS = ["go", "if the value is a class", "go", "the name"]


@pytest.fixture(scope="module")
def layout(vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    """A number, two patches, a text of any length, the separator; two action tokens."""
    return Layout.from_spaces(SPACE, ACTION, vocabulary=vocabulary, text=text)


@pytest.fixture(scope="module")
def episode(layout: Layout) -> TokenSequence:
    images = np.arange(T * 16 * 32 * 3).reshape(T, 16, 32, 3).astype(np.uint8)
    observations = {"at": np.arange(T) % 4, "image": images, "mission": MISSIONS}
    actions = np.stack([np.arange(T) % 3, np.arange(T) % 2], axis=1)
    return layout.episode_tokens(observations, actions, targets=np.array([True, False, True, True]))


@pytest.fixture(scope="module")
def pair(vocabulary: Vocabulary, text: TextTokenizer) -> TokenSequence:
    """Four patches and a caption."""
    return pair_tokens(np.zeros((32, 32, 1), np.uint8), "a class", vocabulary, text)


def trunk_of(vocabulary: Vocabulary, latents: int, decoded: bool = False, images: bool = False) -> Trunk:
    return Trunk(vocabulary=vocabulary, latents=latents, decoded_actions=decoded, resample_images=images)


def test_a_flat_trunk_has_a_position_for_every_token(
    vocabulary: Vocabulary, episode: TokenSequence, pair: TokenSequence
) -> None:
    flat = Trunk(vocabulary=vocabulary)
    for sequence in (episode, pair):
        assert flat.is_flat
        assert flat.length(sequence) == len(sequence)
        assert flat.costs(sequence.ids, sequence.local_positions).tolist() == [1] * len(sequence)
        np.testing.assert_array_equal(flat.timestep_starts(sequence), sequence.timestep_starts)


@pytest.mark.parametrize("latents", [1, 4, 8])
@pytest.mark.parametrize("decoded", [False, True])
def test_a_timestep_costs_its_latents_and_its_actions_whatever_it_holds(
    vocabulary: Vocabulary, episode: TokenSequence, latents: int, decoded: bool
) -> None:
    trunk = trunk_of(vocabulary, latents, decoded)
    assert len(set(np.diff(episode.timestep_starts).tolist())) > 1  # ragged: the missions differ in length
    a_timestep = latents + (0 if decoded else 2)
    assert trunk.timestep_starts(episode).tolist() == [a_timestep * t for t in range(T + 1)]
    assert trunk.length(episode) == a_timestep * T


def test_exploratory_actions_keep_their_positions(vocabulary: Vocabulary, episode: TokenSequence) -> None:
    costs = trunk_of(vocabulary, 1).costs(episode.ids, episode.local_positions)
    a, b = episode.timestep_starts[1:3]
    assert not episode.loss_mask[a:b].any()
    assert costs[a:b].tolist() == [1] + [0] * (b - a - 3) + [1, 1]


def test_text_keeps_its_positions_and_images_theirs_unless_asked(
    vocabulary: Vocabulary, text: TextTokenizer, pair: TokenSequence
) -> None:
    document, words = text_tokens("the value", text), len(pair) - 4
    for latents in (1, 4):
        assert trunk_of(vocabulary, latents).length(document) == len(document)
        assert trunk_of(vocabulary, latents).length(pair) == len(pair)
        resampled = trunk_of(vocabulary, latents, images=True)
        assert resampled.length(document) == len(document)
        assert resampled.length(pair) == latents + words
        assert resampled.length(concatenate([pair, pair])) == 2 * (latents + words)


@pytest.mark.parametrize("latents", [0, 1, 4])
@pytest.mark.parametrize("decoded", [False, True])
def test_a_head_is_as_many_tokens_as_fit_and_never_part_of_an_observation(
    vocabulary: Vocabulary, episode: TokenSequence, latents: int, decoded: bool
) -> None:
    trunk, cut_actions = trunk_of(vocabulary, latents, decoded), 0
    for room in range(trunk.length(episode) + 3):
        head = trunk.head(episode, room)
        assert trunk.length(head) <= room
        np.testing.assert_array_equal(head.ids, episode.ids[: len(head)])
        if latents and len(head) < len(episode):
            following = episode.local_positions[len(head)]
            assert following == 0 or following == 512  # an observation or an action token is next
            if len(head):
                assert head.local_positions[-1] == 512  # nothing ends with an observation without its action
            cut_actions += following == 512
            assert room - trunk.length(head) <= latents
        elif not latents and not decoded:
            assert len(head) == min(room, len(episode))
    assert bool(cut_actions) == (latents > 0 and not decoded)
    assert trunk.head(episode, trunk.length(episode)) is episode


def test_the_rows_of_a_batch_in_full(vocabulary: Vocabulary, episode: TokenSequence, layout: Layout) -> None:
    A = [episode.ids[s - 2 : s].tolist() for s in episode.timestep_starts[1:]]
    separator = vocabulary.separator
    two = episode.timesteps(0, 2, vocabulary.patch)
    batch = pack([[two], [two, two]], trunk_of(vocabulary, 2), length=17)
    row = [separator, separator, *A[0], separator, separator, *A[1]]
    assert batch.input_ids.tolist() == [row + [0] * 9, [*row, *row, 0]]
    assert batch.segments.tolist() == [[1] * 8 + [0] * 9, [1] * 8 + [2] * 8 + [0]]
    assert batch.positions.tolist() == [[*range(8)] + [0] * 9, [*range(8), *range(8), 0]]
    taken = [False, False, True, True] + [False] * 4  # the second timestep is exploratory
    assert batch.loss_mask.tolist() == [taken + [False] * 9, [*taken, *taken, False]]
    # The shorter observations stand first: timestep 0 of each sequence, then timestep 1.
    assert batch.latent_slots is not None
    assert batch.latent_slots.tolist() == [[0, 1], [17, 18], [25, 26], [4, 5], [21, 22], [29, 30]]
    a, b = episode.timestep_starts[:2]
    c = episode.timestep_starts[2]
    assert batch.observation_ids is not None
    assert batch.observation_sizes is not None
    assert batch.observation_ids.tolist() == 3 * episode.ids[a : b - 2].tolist() + 3 * episode.ids[b : c - 2].tolist()
    assert batch.observation_sizes.tolist() == [[b - a - 2, 3], [c - b - 2, 3]]
    assert batch.action_ids is None
    assert batch.num_tokens == 3 * len(two)
    # Patches follow their observations: those of timestep 0 of all sequences first.
    pixels = [p.tobytes() for p in two.patches]
    found = [p.tobytes() for p in batch.patches[batch.patch_indices].numpy()]
    assert found == 3 * pixels[:2] + 3 * pixels[2:]


def test_decoded_actions_stand_beside_the_rows(
    vocabulary: Vocabulary, episode: TokenSequence, text: TextTokenizer
) -> None:
    one = Layout.from_spaces(spaces.Discrete(3), spaces.Discrete(5), vocabulary=vocabulary, text=text)
    short = one.episode_tokens(np.array([0, 1]), np.array([3, 4]))
    batch = pack([[episode.timesteps(0, 2, vocabulary.patch), short]], trunk_of(vocabulary, 2, decoded=True))
    assert batch.input_ids.tolist() == [[vocabulary.separator] * 8]
    assert not batch.loss_mask.any()
    assert batch.action_ids is not None
    assert batch.action_targets is not None
    assert batch.action_sizes is not None
    assert batch.action_slots is not None
    assert batch.following_slots is not None
    a, b = episode.timestep_starts[1:3]
    assert batch.action_ids.tolist() == [*short.ids[[2, 5]], *episode.ids[a - 2 : a], *episode.ids[b - 2 : b]]
    assert batch.action_targets.tolist() == [True, True, True, True, False, False]
    assert batch.action_sizes.tolist() == [[1, 2], [2, 2]]
    assert batch.action_slots.tolist() == [5, 7, 1, 3]  # the last latent before each
    assert batch.following_slots.tolist() == [6, -1, 2, -1]  # the last of a sequence is followed by nothing
    assert batch.num_tokens == b + len(short)


def test_a_flat_batch_has_nothing_beside_its_rows(vocabulary: Vocabulary, episode: TokenSequence) -> None:
    names = ["input_ids", "loss_mask", "local_positions", "segments", "positions"]
    images = ["patches", "patch_indices", "patch_positions"]
    assert list(pack([[episode]], Trunk(vocabulary=vocabulary)).tensors()) == [*names, *images]


@pytest.mark.parametrize("latents", [-1, 9])
def test_a_number_of_latents_out_of_range_is_refused(vocabulary: Vocabulary, latents: int) -> None:
    with pytest.raises(UserError, match=f"latents is {latents}, allowed 0 .* to 8"):
        trunk_of(vocabulary, latents)


def test_images_cannot_be_resampled_into_no_latents(vocabulary: Vocabulary) -> None:
    with pytest.raises(UserError, match="resample_images needs latents of at least 1"):
        trunk_of(vocabulary, 0, images=True)


def test_targets_among_resampled_tokens_are_refused(vocabulary: Vocabulary, episode: TokenSequence) -> None:
    predicted = observations_predicted(episode, vocabulary)
    pack([[predicted]], Trunk(vocabulary=vocabulary))
    with pytest.raises(UserError, match=r"row 0: observation tokens are targets.* 2 latents.*--model\.latents 0"):
        pack([[predicted]], trunk_of(vocabulary, 2))


def test_predicted_observations_are_all_tokens_that_have_ids(vocabulary: Vocabulary, episode: TokenSequence) -> None:
    mask = observations_predicted(episode, vocabulary).loss_mask
    a = episode.timestep_starts[1]
    assert mask[:a].tolist() == [True, False, False, *[True] * (a - 6), False, True, True]
