"""The order of tokens, their local positions and the loss mask: said in one place, and here in full."""

import json
from typing import Any

import numpy as np
import pytest
from conftest import SPACES
from gymnasium import spaces

from gatito.data.episode import row, stack
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens
from gatito.tokenizers.documents import image_tokens
from gatito.tokenizers.sequence import concatenate

ACTION = 512
"""The one local position of all action tokens."""
TEXT = 513
"""The local position of text outside any timestep."""
TWO = spaces.Discrete(2)
CAMERA = spaces.Box(0, 255, (16, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def layout(vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    """Camera (2 patches), mission (text), place (2 values); the action is a gripper and a turn."""
    return Layout.from_spaces(
        spaces.Dict(place=spaces.Box(-1, 1, (2,), np.float32), mission=spaces.Text(64), camera=CAMERA),
        spaces.Dict(turn=spaces.Discrete(3, start=1), gripper=spaces.Box(-2, 2, (1,), np.float32)),
        vocabulary=vocabulary,
        text=text,
    )


def episode(missions: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    T = len(missions)
    cameras = np.arange(T, dtype=np.uint8)[:, None, None, None] + np.zeros((T, *CAMERA.shape), np.uint8)
    observations = {
        "place": np.tile(np.array([-1.0, 0.5], np.float32), (T, 1)),
        "mission": list(missions),
        "camera": cameras,
    }
    return observations, {"turn": np.full(T, 2), "gripper": np.full((T, 1), 2.0, np.float32)}


def test_a_small_episode_in_full(layout: Layout, text: TextTokenizer) -> None:
    """Text [0, 300), continuous [300, 1324), discrete [1324, 2348), separator 2348, patches 2349."""
    go = text.encode("go to")
    n = len(go)
    assert n >= 2
    sequence = layout.episode_tokens(*episode(["go to", "go to"]))
    # camera, mission, place: -1 in bin 0 and 0.5 in bin 768; separator; gripper 2.0 in bin 1023; turn 2 = start + 1
    step = [2349, 2349, *go, 300 + 0, 300 + 768, 2348, 300 + 1023, 1324 + 1]
    assert sequence.ids.tolist() == step * 2
    assert sequence.local_positions.tolist() == [*range(n + 5), ACTION, ACTION] * 2
    assert sequence.loss_mask.tolist() == ([False] * (n + 5) + [True, True]) * 2
    assert sequence.timestep_starts.tolist() == [0, n + 7, 2 * (n + 7)]
    assert sequence.patches.shape == (4, 16, 16, 3)
    assert [sorted(set(patch.ravel().tolist())) for patch in sequence.patches] == [[0], [0], [1], [1]]
    assert sequence.patch_intervals.tolist() == [[0, 128, 0, 64], [0, 128, 64, 128]] * 2
    assert {a.dtype for a in (sequence.ids, sequence.local_positions)} == {np.dtype(np.int32)}


def test_text_inside_an_observation_is_never_a_target(layout: Layout, vocabulary: Vocabulary) -> None:
    sequence = layout.episode_tokens(*episode(["if the expression is a class", "go", "the value"]))
    is_text = sequence.ids < vocabulary.text_size
    assert is_text.sum() > 6
    assert not sequence.loss_mask[is_text].any()
    np.testing.assert_array_equal(sequence.loss_mask, sequence.local_positions == ACTION)
    assert sequence.loss_mask.sum() == 3 * 2


def test_missions_of_different_lengths_make_timesteps_of_different_lengths(
    layout: Layout, text: TextTokenizer
) -> None:
    missions = ["go", "the value of the statement", "", "go"]
    lengths = [len(text.encode(mission)) for mission in missions]
    assert len(set(lengths)) == 3
    assert lengths[2] == 0
    sequence = layout.episode_tokens(*episode(missions))
    assert np.diff(sequence.timestep_starts).tolist() == [n + 7 for n in lengths]
    for t, mission in enumerate(missions):
        step = sequence.timesteps(t, t + 1, layout.vocabulary.patch)
        assert step.ids[2 : 2 + lengths[t]].tolist() == text.encode(mission)
        assert step.ids[2 + lengths[t] :].tolist() == [300, 1068, 2348, 1323, 1325]
        assert step.local_positions.tolist() == [*range(lengths[t] + 5), ACTION, ACTION]
        assert set(step.patches.ravel().tolist()) == {t}


def test_targets_leave_the_actions_of_a_timestep_out_of_the_loss(layout: Layout) -> None:
    observations, actions = episode(["go", "go", "go"])
    sequence = layout.episode_tokens(observations, actions, targets=np.array([True, False, True]))
    whole = layout.episode_tokens(observations, actions)
    is_action = whole.local_positions == ACTION
    assert sequence.loss_mask[is_action].tolist() == [True, True, False, False, True, True]
    assert not sequence.loss_mask[~is_action].any()
    np.testing.assert_array_equal(sequence.ids, whole.ids)


def test_patches_of_two_image_fields_are_in_the_order_of_their_tokens(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    near, wide = spaces.Box(0, 255, (16, 16, 1), np.uint8), spaces.Box(0, 255, (16, 48, 3), np.uint8)
    layout = Layout.from_spaces(
        spaces.Dict(wide=wide, near=near, middle=spaces.Discrete(3)),
        spaces.Discrete(2),
        vocabulary=vocabulary,
        text=text,
    )
    T = 2
    observations = {
        "near": np.stack([np.full(near.shape, 10 * t + 1, np.uint8) for t in range(T)]),
        "wide": np.stack([np.repeat([10 * t + 2, 10 * t + 3, 10 * t + 4], 16).astype(np.uint8) for t in range(T)])[
            :, None, :, None
        ]
        + np.zeros((T, *wide.shape), np.uint8),
        "middle": np.zeros(T, np.int64),
    }
    sequence = layout.episode_tokens(observations, np.zeros(T, np.int64))
    assert sequence.ids.tolist() == [1324, 2349, 2349, 2349, 2349, 2348, 1324] * T  # middle, near, wide
    assert [int(p.min()) for p in sequence.patches] == [int(p.max()) for p in sequence.patches]
    assert [int(p.min()) for p in sequence.patches] == [1, 2, 3, 4, 11, 12, 13, 14]
    columns = [[0, 128], [0, 43], [43, 85], [85, 128]] * T
    assert sequence.patch_intervals[:, 2:].tolist() == columns


@pytest.mark.parametrize("space", [pytest.param(space, id=name) for name, space in SPACES])
def test_acting_builds_the_tokens_that_training_sees(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space
) -> None:
    action_space = spaces.Tuple([spaces.Discrete(3), spaces.Box(-3, 3, (2,), np.float32)])
    layout = Layout.from_spaces(space, action_space, vocabulary=vocabulary, text=text)
    space.seed(1)
    action_space.seed(1)
    T = 4
    observations = stack(space, [space.sample() for _ in range(T)])
    actions = stack(action_space, [action_space.sample() for _ in range(T)])
    parts = []
    for t, ids in enumerate(layout.action_ids(actions)):
        parts += [layout.observation_tokens(row(observations, t)), layout.action_tokens(ids)]
    acted = concatenate(parts)
    trained = layout.episode_tokens(observations, actions)
    assert trained.num_timesteps == T
    assert len(trained) > T * (layout.num_action_tokens + 1)
    for name in ("ids", "loss_mask", "local_positions", "patches", "patch_intervals"):
        np.testing.assert_array_equal(getattr(acted, name), getattr(trained, name), err_msg=name)


def test_legal_ids_are_those_of_each_action_element(layout: Layout) -> None:
    assert layout.legal_ids == ((300, 1324), (1324, 1327))  # gripper, turn
    assert layout.num_action_tokens == 2


def test_with_overlapping_discrete_ids_a_discrete_action_is_a_text_id() -> None:
    text = TextTokenizer.load()
    layout = Layout.from_spaces(
        spaces.Discrete(5),
        spaces.Discrete(3),
        vocabulary=Vocabulary(overlapping_discrete=True),
        text=text,
    )
    assert layout.legal_ids == ((0, 3),)
    assert layout.episode_tokens(np.array([4]), np.array([2])).ids.tolist() == [4, 33024, 2]
    assert layout.action_from_tokens([2]) == 2


@pytest.mark.parametrize("token", [1323, 1327, 2348, 0])
def test_an_illegal_action_token_is_refused(layout: Layout, token: int) -> None:
    with pytest.raises(UserError, match=rf"action token 1 is {token}, legal are \[1324, 1327\)"):
        layout.action_from_tokens([300, token])


def test_an_action_for_the_environment_is_in_its_space(layout: Layout) -> None:
    action = layout.action_from_tokens([1323, 1326])
    assert action["turn"] == 3
    assert action["turn"].shape == ()
    assert action["gripper"].tolist() == pytest.approx([2 * (1 - 1 / 1024)])
    assert action["gripper"].dtype == np.float32


# The layout as JSON


@pytest.mark.parametrize("space", [pytest.param(space, id=name) for name, space in SPACES])
def test_json_gives_the_same_layout_and_hash(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space
) -> None:
    layout = Layout.from_spaces(space, spaces.Box(-2, 3, (2,), np.float32), vocabulary=vocabulary, text=text)
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())), text)
    assert again.observations == layout.observations
    assert again.actions == layout.actions
    assert again.vocabulary == layout.vocabulary
    assert again.sha256 == layout.sha256
    space.seed(0)
    observation = space.sample()
    np.testing.assert_array_equal(
        again.observation_tokens(observation).ids, layout.observation_tokens(observation).ids
    )


def test_layouts_that_differ_have_different_hashes(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    def sha256(observation: spaces.Space, action: spaces.Space = TWO, **changes: Any) -> str:
        return Layout.from_spaces(observation, action, vocabulary=vocabulary, text=text, **changes).sha256

    grid = spaces.Dict(grid=spaces.Box(0, 10, (4, 4, 3), np.uint8))
    hashes = [
        sha256(spaces.Discrete(2)),
        sha256(spaces.Discrete(3)),
        sha256(spaces.Discrete(2, start=1)),
        sha256(spaces.Discrete(2), spaces.Discrete(3)),
        sha256(spaces.Box(-1, 1, (2,), np.float32)),
        sha256(spaces.Box(-1, 1, (2,), np.float64)),
        sha256(spaces.Box(-1, 2, (2,), np.float32)),
        sha256(grid),
        sha256(grid, overrides={"grid": "discrete"}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert sha256(spaces.Discrete(2)) == hashes[0]


def test_another_text_model_is_refused(layout: Layout) -> None:
    with pytest.raises(
        UserError, match=r"the layout was made with text model [0-9a-f]{12}, this one is [0-9a-f]{12}"
    ):
        Layout.from_json(layout.to_json(), TextTokenizer.load())


# What is refused


def replaced(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**tree, **changes}


GOOD = np.zeros((3, 2), np.float32)
WITH_NAN = np.array([[0, 0], [0, np.nan], [0, 0]], np.float32)
WITH_INF = np.array([[0, 0], [0, 0], [np.inf, 0]], np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"place": WITH_NAN}, r"ep 7, observation place, timestep 1: NaN or Inf in .*; repair or drop it"),
        ({"place": WITH_INF}, r"ep 7, observation place, timestep 2: NaN or Inf in"),
        ({"place": np.zeros((3, 3))}, r"ep 7, observation place: shape \(3,\), expected \(2,\)"),
        ({"place": np.float32(0)}, r"ep 7, observation place: no time axis; expected \(timesteps, 2\)"),
        ({"place": [[0, 0], [0]]}, r"ep 7, observation place: its timesteps differ in shape; expected \(2,\)"),
        ({"place": GOOD.astype(object)}, r"ep 7, observation place: dtype object, expected float32; convert it"),
        ({"place": GOOD.astype(str)}, r"ep 7, observation place: dtype <U\d+, expected float32; convert it"),
        ({"place": GOOD.astype(complex)}, r"ep 7, observation place: dtype complex128, expected float32"),
        ({"place": GOOD[:2]}, r"ep 7: its fields have \[2, 3\] timesteps; they must agree"),
        ({"place": GOOD[:1]}, r"ep 7: its fields have \[1, 3\] timesteps; they must agree"),
        ({"mission": ["go", 5, "go"]}, r"ep 7, observation mission, timestep 1: int, expected text"),
        ({"mission": ["go", None, "go"]}, r"ep 7, observation mission, timestep 1: NoneType, expected text"),
        ({"mission": ["go", "go", "go " * 600]}, r"ep 7, timestep 2: \d+ observation tokens, allowed 512; shorten"),
        (
            {"camera": np.zeros((3, 16, 32, 3), np.float32)},
            r"ep 7, observation camera: dtype float32, expected uint8 pixels",
        ),
        ({"camera": np.zeros((3, 32, 16, 3), np.uint8)}, r"ep 7, observation camera: shape \(32, 16, 3\), expected"),
    ],
)
def test_bad_observations_are_refused(layout: Layout, changes: dict[str, Any], message: str) -> None:
    observations, actions = episode(["go"] * 3)
    with pytest.raises(UserError, match=message):
        layout.episode_tokens(replaced(observations, **changes), actions, where="ep 7")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turn": np.array([1, 4, 1])}, r"ep 7, action turn, timestep 1, element 0: value 4, allowed \[1, 3\]"),
        ({"turn": np.array([1, 3, 0])}, r"ep 7, action turn, timestep 2, element 0: value 0, allowed \[1, 3\]"),
        ({"turn": np.array([1, 1.5, 1])}, r"ep 7, action turn: fractions where the space is discrete"),
        ({"turn": np.array([1, np.nan, 1])}, r"ep 7, action turn, timestep 1: NaN or Inf"),
        ({"turn": np.array(["1", "2", "3"])}, r"ep 7, action turn: dtype <U1, expected int64"),
        ({"turn": np.ones(4, int), "gripper": GOOD[:, :1]}, r"ep 7: its action fields have \[3, 4\] timesteps"),
        (
            {"turn": np.ones(2, int), "gripper": GOOD[:2, :1]},
            r"ep 7: 2 actions for 3 observations; there must be one for each",
        ),
        (
            {"turn": np.ones(1, int), "gripper": GOOD[:1, :1]},
            r"ep 7: 1 actions for 3 observations; there must be one for each",
        ),
        ({"gripper": WITH_NAN[:, 1:]}, r"ep 7, action gripper, timestep 1: NaN or Inf in \[nan\]"),
        ({"gripper": GOOD}, r"ep 7, action gripper: shape \(2,\), expected \(1,\)"),
    ],
)
def test_bad_actions_are_refused(layout: Layout, changes: dict[str, Any], message: str) -> None:
    observations, actions = episode(["go"] * 3)
    with pytest.raises(UserError, match=message):
        layout.episode_tokens(observations, replaced(actions, **changes), where="ep 7")


def test_a_missing_observation_is_named(layout: Layout) -> None:
    observations, actions = episode(["go"])
    del observations["mission"]
    message = r"ep 7: does not match its space; expected fields camera, mission, place, got \['camera', 'place'\]"
    with pytest.raises(UserError, match=message):
        layout.episode_tokens(observations, actions, where="ep 7")
    with pytest.raises(UserError, match=r"observation: does not match its space; expected fields camera, mission"):
        layout.observation_tokens(row(observations, 0))


def test_a_missing_action_is_named(layout: Layout) -> None:
    observations, actions = episode(["go"])
    del actions["turn"]
    with pytest.raises(UserError, match=r"ep 7: does not match its space; expected fields gripper, turn, got"):
        layout.episode_tokens(observations, actions, where="ep 7")


def test_an_observation_that_is_no_dict_is_refused(layout: Layout) -> None:
    with pytest.raises(UserError, match=r"observation: does not match its space; .*, got ndarray"):
        layout.observation_tokens(np.zeros(3))


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3), CAMERA, spaces.Text(3)])
def test_an_episode_without_timesteps_is_refused(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space
) -> None:
    layout = Layout.from_spaces(space, spaces.Box(-1, 1, (1,), np.float32), vocabulary=vocabulary, text=text)
    with pytest.raises(UserError, match=r"ep 7: no timesteps; drop the episode"):
        layout.episode_tokens(
            stack(space, []) if isinstance(space, spaces.Text) else np.zeros((0, *space.shape), space.dtype),
            np.zeros((0, 1), np.float32),
            where="ep 7",
        )


def test_an_observation_of_more_than_512_tokens_is_refused(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    def layout(size: int) -> Layout:
        space = spaces.Box(-1, 1, (size,), np.float32)
        return Layout.from_spaces(space, spaces.Discrete(2), vocabulary=vocabulary, text=text)

    assert layout(511).observation_tokens(np.zeros(511)).local_positions.tolist() == list(range(512))
    with pytest.raises(UserError, match=r"has 513 tokens, allowed 512; resize its images or drop fields"):
        layout(512)


# Documents, pairs, and sequences as such


def test_a_document_is_all_targets_with_its_end(text: TextTokenizer) -> None:
    ids = text.encode("the value of an object")
    sequence = text_tokens("the value of an object", text)
    assert sequence.ids.tolist() == [*ids, 2]
    assert sequence.loss_mask.tolist() == [True] * (len(ids) + 1)
    assert sequence.local_positions.tolist() == [TEXT] * (len(ids) + 1)
    assert sequence.timestep_starts.tolist() == list(range(len(ids) + 2))  # a window may start at any token


def test_a_pair_is_the_image_then_its_text_with_the_end_as_target(
    vocabulary: Vocabulary, text: TextTokenizer
) -> None:
    ids = text.encode("a class")
    image = np.full((16, 20, 1), 9, np.uint8)
    sequence = pair_tokens(image, "a class", vocabulary, text)
    n = len(ids) + 1
    assert sequence.ids.tolist() == [2349, 2349, *ids, 2]
    assert sequence.loss_mask.tolist() == [False, False] + [True] * n
    assert sequence.local_positions.tolist() == [0, 1] + [TEXT] * n
    assert sequence.timestep_starts.tolist() == [0, n + 2]
    assert sequence.patches.shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((16, 16, 2), np.uint8),
            r"image: an image is HxWxC uint8 with C of 1, 3 or 4, got shape \(16, 16, 2",
        ),
        (np.zeros((16, 16), np.uint8), r"got shape \(16, 16\) of uint8"),
        (np.zeros((16, 16, 3), np.float32), r"got shape \(16, 16, 3\) of float32"),
        (np.zeros((0, 16, 3), np.uint8), r"got shape \(0, 16, 3\)"),
        (np.zeros((16, 16 * 513, 3), np.uint8), r"gives 513 patches, allowed 512; scale it"),
    ],
)
def test_what_is_no_image_is_refused(vocabulary: Vocabulary, image: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_tokens(image, vocabulary)


def assert_equal(a: TokenSequence, b: TokenSequence) -> None:
    for name in ("ids", "loss_mask", "local_positions", "patches", "patch_intervals", "timestep_starts"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_timesteps_and_concatenate_undo_each_other(layout: Layout) -> None:
    sequence = layout.episode_tokens(*episode(["go", "the value", "", "class"]))
    patch = layout.vocabulary.patch
    for cut in range(5):
        assert_equal(concatenate([sequence.timesteps(0, cut, patch), sequence.timesteps(cut, 4, patch)]), sequence)


def test_a_head_keeps_the_patches_of_its_tokens(layout: Layout) -> None:
    sequence = layout.episode_tokens(*episode(["go", "go"]))
    first = int(sequence.timestep_starts[1])
    head = sequence.head(first + 1, layout.vocabulary.patch)  # the first of the second timestep's two patches
    assert len(head) == first + 1
    assert head.timestep_starts.tolist() == [0, first, first + 1]
    assert [int(patch.max()) for patch in head.patches] == [0, 0, 1]
    assert_equal(sequence.head(len(sequence), layout.vocabulary.patch), sequence)
    assert_equal(sequence.head(first, layout.vocabulary.patch), sequence.timesteps(0, 1, layout.vocabulary.patch))


def test_a_repr_shows_sizes_and_never_values(layout: Layout) -> None:
    assert (
        repr(layout.episode_tokens(*episode(["", ""])))
        == "TokenSequence(14 tokens, 2 timesteps, 4 patches, 4 targets)"
    )
