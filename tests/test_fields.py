"""Spaces to fields, and values to ids and back, for every supported kind of space."""

from typing import Any

import numpy as np
import pytest
from conftest import SPACES, holds_text
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from gatito.data.episode import row, stack
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary
from gatito.tokenizers.codec import decode, encode, out_of_bounds
from gatito.tokenizers.fields import Field, build_tree, fields_of, value_at

NUMERIC = ("continuous", "discrete")
OBSERVATIONS = [pytest.param(space, id=name) for name, space in SPACES]
ACTIONS = [pytest.param(space, id=name) for name, space in SPACES if not holds_text(space)]


def layout_of(vocabulary: Vocabulary, text: TextTokenizer, observation: spaces.Space, action: spaces.Space) -> Layout:
    return Layout.from_spaces(observation, action, vocabulary=vocabulary, text=text)


def one(space: spaces.Space, role: str, **overrides: str) -> Field:
    (field,) = fields_of(space, role, overrides)  # type: ignore[arg-type]
    return field


def samples(space: spaces.Space, seed: int, num: int = 3) -> Any:
    space.seed(seed)
    return stack(space, [space.sample() for _ in range(num)])


def on_the_encoded_scale(field: Field, values: np.ndarray) -> np.ndarray:
    """The paper's rules written anew: what is cut into bins, for values (T, *shape), as (T, size)."""
    x = values.reshape(len(values), -1).astype(np.float64)
    result = np.empty_like(x)
    for j in range(field.size):
        low, high = field.low[j], field.high[j]
        if field.mu_law[j]:
            result[:, j] = np.sign(x[:, j]) * np.log(np.abs(x[:, j]) * 100 + 1) / np.log(256 * 100 + 1)
        elif field.scaled and low is not None and high is not None and high > low:
            result[:, j] = (x[:, j] - low) / (high - low) * 2 - 1
        else:
            result[:, j] = x[:, j]
    return np.clip(result, -1, 1)


def assert_within_half_a_bin(field: Field, decoded: np.ndarray, values: np.ndarray) -> None:
    error = np.abs(on_the_encoded_scale(field, decoded) - on_the_encoded_scale(field, values))
    integers = np.dtype(field.dtype).kind in "iu"  # the integer nearest to the centre of the bin
    assert error.max() <= (2 / 1024 if integers else 1 / 1024) + 1e-6
    assert (out_of_bounds(field, decoded) == 0).all()


# Which kind a space becomes


@pytest.mark.parametrize(
    ("space", "role", "kind"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), "observation", "continuous"),
        (spaces.Box(0, 255, (16, 16, 3), np.uint8), "observation", "image"),
        (spaces.Box(0, 255, (16, 16, 1), np.uint8), "observation", "image"),
        (spaces.Box(0, 255, (16, 16, 4), np.uint8), "observation", "image"),
        (spaces.Box(0, 255, (16, 16, 2), np.uint8), "observation", "discrete"),
        (spaces.Box(0, 255, (16, 16), np.uint8), "observation", "discrete"),
        (spaces.Box(0, 255, (16, 16, 3), np.int64), "observation", "discrete"),
        (spaces.Box(0, 255, (2, 2, 3), np.uint8), "action", "discrete"),
        (spaces.Box(0, 1022, (2,), np.int64), "observation", "discrete"),
        (spaces.Box(0, 1023, (2,), np.int64), "observation", "continuous"),
        (spaces.Box(-511, 511, (2,), np.int16), "action", "discrete"),
        (spaces.Box(-512, 511, (2,), np.int16), "action", "continuous"),
        (spaces.Box(np.array([0, 0]), np.array([1, 4000]), dtype=np.int64), "action", "continuous"),
        (spaces.Box(0, 1, (2,), np.bool_), "observation", "discrete"),
        (spaces.Discrete(3), "action", "discrete"),
        (spaces.MultiDiscrete([3, 4]), "action", "discrete"),
        (spaces.MultiBinary(3), "observation", "discrete"),
        (spaces.Text(4), "observation", "text"),
    ],
)
def test_the_space_decides_the_kind(space: spaces.Space, role: str, kind: str) -> None:
    assert one(space, role).kind == kind


def test_an_integer_box_of_fewer_than_1024_values_counts_from_its_low() -> None:
    field = one(spaces.Box(np.array([-3, 10]), np.array([9, 12]), dtype=np.int64), "observation")
    assert (field.start, field.num_values) == ((-3, 10), (13, 3))


@pytest.mark.parametrize(
    ("space", "companded"),
    [
        (spaces.Box(-1, 1, (2,), np.float32), (False, False)),
        (spaces.Box(0, 0.5, (2,), np.float32), (False, False)),
        (spaces.Box(-1, np.nextafter(np.float32(1), np.float32(2)), (2,), np.float32), (True, True)),
        (spaces.Box(np.array([-1.0, -1.0]), np.array([1.0, 2.0]), dtype=np.float64), (True, True)),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), (True,)),
        (spaces.Box(-1, np.inf, (1,), np.float32), (True,)),
    ],
)
def test_observations_are_companded_unless_all_bounds_are_inside_1(
    space: spaces.Space, companded: tuple[bool, ...]
) -> None:
    field = one(space, "observation")
    assert field.mu_law == companded
    assert not field.scaled


@pytest.mark.parametrize(
    ("space", "companded"),
    [
        (spaces.Box(-1, 1, (1,), np.float32), (False,)),
        (spaces.Box(-40, 200, (1,), np.float32), (False,)),
        (spaces.Box(-np.inf, np.inf, (1,), np.float32), (True,)),
        (spaces.Box(0, np.inf, (1,), np.float32), (True,)),
        (spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, 3.0]), dtype=np.float64), (True, False)),
        (spaces.Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,), np.float32), (True,)),
    ],
)
def test_action_elements_are_companded_only_where_unbounded(space: spaces.Space, companded: tuple[bool, ...]) -> None:
    assert one(space, "action").mu_law == companded


def test_companding_does_not_depend_on_the_values(vocabulary: Vocabulary) -> None:
    wide = one(spaces.Box(-np.inf, np.inf, (1,), np.float32), "observation")
    narrow = one(spaces.Box(-1, 1, (1,), np.float32), "observation")
    half = np.array([[0.5]], np.float32)
    assert encode(narrow, half, vocabulary, "x").item() - vocabulary.continuous_start == 768
    assert encode(wide, half, vocabulary, "x").item() - vocabulary.continuous_start == 710  # log(51)/log(25601)


def test_bounded_actions_are_scaled_to_their_bounds(vocabulary: Vocabulary) -> None:
    field = one(spaces.Box(-40, 200, (5,), np.float64), "action")
    ids = encode(field, np.array([[-40, 80, 200, 79.999, -39.0]]), vocabulary, "x") - vocabulary.continuous_start
    assert ids.tolist() == [[0, 512, 1023, 511, 4]]


# Order


def test_fields_are_in_lexicographic_key_order_nested_too() -> None:
    unit = spaces.Box(-1, 1, (1,), np.float32)
    space = spaces.Dict(
        {
            "b": spaces.Dict({"z": unit, "B": unit, "a": unit}),
            "a10": unit,
            "a2": unit,
            "C": spaces.Tuple((unit, spaces.Dict({"y": unit, "x": unit}))),
        }
    )
    space.spaces = dict(reversed(space.spaces.items()))  # whatever order the environment gives
    names = [field.name for field in fields_of(space, "observation")]
    assert names == ["C/0", "C/1/x", "C/1/y", "a10", "a2", "b/B", "b/a", "b/z"]


def test_tuples_are_in_index_order_beyond_ten() -> None:
    fields = fields_of(spaces.Tuple([spaces.Discrete(i + 1) for i in range(12)]), "action")
    assert [field.path for field in fields] == [(i,) for i in range(12)]
    assert [field.num_values for field in fields] == [(i + 1,) for i in range(12)]


def test_values_are_flattened_row_major(vocabulary: Vocabulary) -> None:
    field = one(spaces.MultiDiscrete([[10, 10, 10], [10, 10, 10]]), "observation")
    ids = encode(field, np.array([[[1, 2, 3], [4, 5, 6]]]), vocabulary, "x") - vocabulary.discrete_start
    assert ids.tolist() == [[1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize("space", OBSERVATIONS)
def test_build_tree_undoes_value_at(space: spaces.Space) -> None:
    fields = fields_of(space, "observation")
    tree = samples(space, 3)
    again = build_tree({field.path: value_at(tree, field.path) for field in fields})
    assert repr(again) == repr(build_tree({f.path: value_at(again, f.path) for f in fields}))
    for field in fields:
        assert value_at(again, field.path) is value_at(tree, field.path)


# Round trips


@pytest.mark.parametrize("space", OBSERVATIONS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_an_observation_comes_back_within_half_a_bin(vocabulary: Vocabulary, space: spaces.Space, seed: int) -> None:
    tree = samples(space, seed)
    for field in fields_of(space, "observation"):
        if field.kind not in NUMERIC:
            continue
        values = np.asarray(value_at(tree, field.path))
        ids = encode(field, values, vocabulary, "x")
        decoded = decode(field, ids, vocabulary)
        assert decoded.shape == values.shape
        assert decoded.dtype == values.dtype == np.dtype(field.dtype)
        start, stop = vocabulary.groups[field.kind]
        assert ids.min() >= start
        assert ids.max() < stop
        np.testing.assert_array_equal(encode(field, decoded, vocabulary, "x"), ids)
        if field.kind == "discrete":
            np.testing.assert_array_equal(decoded, values)
        else:
            assert_within_half_a_bin(field, decoded, values)


@pytest.mark.parametrize("space", ACTIONS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_an_action_comes_back_within_half_a_bin(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space, seed: int
) -> None:
    layout = layout_of(vocabulary, text, spaces.Discrete(2), space)
    actions = samples(space, seed)
    ids = layout.action_ids(actions)
    decoded = layout.actions_from_ids(ids)
    np.testing.assert_array_equal(layout.action_ids(decoded), ids)
    assert [row(decoded, t) in space for t in range(3)] == [True] * 3
    for j, (start, stop) in enumerate(layout.legal_ids):
        assert ((start <= ids[:, j]) & (ids[:, j] < stop)).all()
    for field in layout.actions:
        values, again = np.asarray(value_at(actions, field.path)), value_at(decoded, field.path)
        assert again.dtype == values.dtype
        if field.kind == "discrete":
            np.testing.assert_array_equal(again, values)
        else:
            assert_within_half_a_bin(field, again, values)


@pytest.mark.parametrize("space", ACTIONS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_every_legal_action_id_comes_back(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space, data: st.DataObject
) -> None:
    layout = layout_of(vocabulary, text, spaces.Discrete(2), space)
    if layout.num_action_tokens > 64:  # an image as an action: legal, and slow to draw element by element
        rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
        tokens = [int(rng.integers(start, stop)) for start, stop in layout.legal_ids]
    else:
        tokens = [data.draw(st.integers(start, stop - 1)) for start, stop in layout.legal_ids]
    action = layout.action_from_tokens(tokens)
    assert action in space
    assert layout.action_ids(stack(space, [action]))[0].tolist() == tokens


@pytest.mark.parametrize("space", ACTIONS)
@pytest.mark.parametrize("end", [0, 1])
def test_both_ends_of_the_legal_ids_are_legal_actions(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space, end: int
) -> None:
    layout = layout_of(vocabulary, text, spaces.Discrete(2), space)
    tokens = [(start, stop - 1)[end] for start, stop in layout.legal_ids]
    action = layout.action_from_tokens(tokens)
    assert action in space
    assert layout.action_ids(stack(space, [action]))[0].tolist() == tokens


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bounds_of_an_action_stay_in_range(vocabulary: Vocabulary, dtype: type) -> None:
    space = spaces.Box(np.array([-0.1, -3, 1e-3], dtype), np.array([0.7, 1e4, 2e-3], dtype), dtype=dtype)
    field = one(space, "action")
    ids = encode(field, np.stack([space.low, space.high]), vocabulary, "x") - vocabulary.continuous_start
    assert ids.tolist() == [[0, 0, 0], [1023, 1023, 1023]]
    for decoded in decode(field, ids + vocabulary.continuous_start, vocabulary):
        assert decoded in space


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (1,), np.float32), spaces.Box(-7, 3, (1,), np.float64)])
def test_all_1024_bins_of_a_bounded_action_come_back(
    vocabulary: Vocabulary, text: TextTokenizer, space: spaces.Space
) -> None:
    layout = layout_of(vocabulary, text, spaces.Discrete(2), space)
    assert layout.legal_ids == (vocabulary.groups["continuous"],)
    ids = np.arange(*layout.legal_ids[0])[:, None]
    decoded = layout.actions_from_ids(ids)
    np.testing.assert_array_equal(layout.action_ids(decoded), ids)
    assert len(np.unique(decoded)) == 1024


def test_an_element_whose_bounds_coincide_has_one_legal_id(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    space = spaces.Box(np.array([-1.0, 0.5]), np.array([1.0, 0.5]), dtype=np.float64)
    layout = layout_of(vocabulary, text, spaces.Discrete(2), space)
    first = vocabulary.continuous_start
    assert layout.legal_ids == ((first, first + 1024), (first, first + 1))
    assert layout.action_from_tokens([first, first])[1] == 0.5


def test_an_element_with_few_integers_has_as_many_legal_ids(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    space = spaces.Box(np.array([0, -7]), np.array([2, 4000]), dtype=np.int64)  # continuous: one element is large
    layout = layout_of(vocabulary, text, spaces.Discrete(2), space)
    first = vocabulary.continuous_start
    assert layout.legal_ids == ((first, first + 3), (first, first + 1024))
    for value in range(3):
        assert layout.action_ids(np.array([[value, 4000]])).tolist() == [[first + value, first + 1023]]


def test_1024_integers_have_a_bin_each(vocabulary: Vocabulary) -> None:
    field = one(spaces.Box(-24, 999, (1,), np.int64), "action")
    values = np.arange(-24, 1000)[:, None]
    ids = encode(field, values, vocabulary, "x")
    np.testing.assert_array_equal(ids[:, 0] - vocabulary.continuous_start, np.arange(1024))
    np.testing.assert_array_equal(decode(field, ids, vocabulary), values)


def test_booleans_come_back(vocabulary: Vocabulary) -> None:
    field = one(spaces.Box(0, 1, (2,), np.bool_), "action")
    values = np.array([[False, True], [True, True]])
    decoded = decode(field, encode(field, values, vocabulary, "x"), vocabulary)
    assert decoded.dtype == np.bool_
    assert decoded.tolist() == values.tolist()


def test_observations_beyond_their_bounds_are_clipped_by_the_bins(vocabulary: Vocabulary) -> None:
    field = one(spaces.Box(-1, 1, (2,), np.float32), "observation")
    ids = encode(field, np.array([[5.0, -5.0]]), vocabulary, "x") - vocabulary.continuous_start
    assert ids.tolist() == [[1023, 0]]
    assert out_of_bounds(field, np.array([[5.0, -1.5], [1.0, -1.0]])).tolist() == [[4.0, 0.5], [0.0, 0.0]]


def test_actions_beyond_a_single_bound_are_clipped_to_it(vocabulary: Vocabulary) -> None:
    field = one(spaces.Box(-np.inf, 1.0, (1,), np.float64), "action")
    at, beyond, below = encode(field, np.array([[1.0], [5.0], [-5.0]]), vocabulary, "x")[:, 0]
    assert at == beyond
    assert below < at


# What is refused


@pytest.mark.parametrize(
    ("space", "role", "message"),
    [
        (
            spaces.Graph(spaces.Discrete(2), None),
            "observation",
            r"observation space is a Graph, which gatito cannot serialize; supported: Box, .* wrap the environment",
        ),
        (
            spaces.Dict(a=spaces.Sequence(spaces.Discrete(2))),
            "observation",
            r"observation space 'a' is a Sequence, which gatito cannot serialize; supported",
        ),
        (spaces.OneOf([spaces.Discrete(2)]), "action", r"action space is a OneOf, which gatito cannot serialize"),
        (spaces.Text(4), "action", r"action space is a Text; actions are numbers"),
        (spaces.Dict(say=spaces.Text(4)), "action", r"action space 'say' is a Text"),
        (
            spaces.Discrete(2000),
            "action",
            r"action space has 2000 discrete values, allowed 1 to 1024; split the space",
        ),
        (
            spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([3, 1025])]),
            "observation",
            r"observation space '1' has 1025 discrete values, allowed 1 to 1024",
        ),
        (spaces.Box(-1, 1, (0,), np.float32), "observation", r"observation space has shape \(0,\), which holds no"),
        (spaces.Dict(), "observation", r"the observation space .* has no values"),
    ],
)
def test_spaces_that_cannot_be_serialized_are_refused(space: spaces.Space, role: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fields_of(space, role)  # type: ignore[arg-type]


# Overrides


def test_a_uint8_grid_can_be_read_as_symbols(vocabulary: Vocabulary, text: TextTokenizer) -> None:
    space = spaces.Dict(grid=spaces.Box(0, 10, (2, 2, 3), np.uint8), place=spaces.Discrete(3))
    assert fields_of(space, "observation")[0].kind == "image"
    layout = Layout.from_spaces(
        space, spaces.Discrete(2), vocabulary=vocabulary, text=text, overrides={"grid": "discrete"}
    )
    grid = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) % 11
    sequence = layout.observation_tokens({"grid": grid, "place": 2})
    assert sequence.ids.tolist() == [*(1324 + i for i in range(11)), 1324, 1326, 2348]
    assert len(sequence.patches) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"gird": "discrete"}, r"observation space: unknown field in overrides 'gird'; did you mean 'grid'\?"),
        ({"grid": "discreet"}, r"observation space 'grid': unknown field kind 'discreet'; did you mean 'discrete'\?"),
        ({"place": "image"}, r"observation space 'place' cannot be read as 'image', only as 'discrete'"),
        ({"speed": "discrete"}, r"observation space 'speed' holds float32; only integers can be read as 'discrete'"),
        ({"speed": "image"}, r"observation space 'speed': an image is HxWxC uint8 with C of 1, 3 or 4"),
        ({"speed": "text"}, r"observation space 'speed' is a Box, which cannot be read as 'text'"),
    ],
)
def test_overrides_that_cannot_be_are_refused(overrides: dict[str, str], message: str) -> None:
    space = spaces.Dict(
        grid=spaces.Box(0, 10, (2, 2, 3), np.uint8),
        place=spaces.Discrete(3),
        speed=spaces.Box(-1, 1, (2,), np.float32),
    )
    with pytest.raises(UserError, match=message):
        fields_of(space, "observation", overrides)
