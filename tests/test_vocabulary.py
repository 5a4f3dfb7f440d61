"""The id ranges, to the number."""

import pytest

from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer, Vocabulary

DEFAULT = Vocabulary()
OVERLAPPING = Vocabulary(overlapping_discrete=True)


def test_default_ranges_are_those_of_the_paper() -> None:
    assert DEFAULT.groups == {"text": (0, 32000), "continuous": (32000, 33024), "discrete": (33024, 34048)}
    assert DEFAULT.separator == 34048
    assert DEFAULT.size == 34112
    assert DEFAULT.size % 64 == 0


def test_the_patch_placeholder_lies_in_the_padding_of_the_head() -> None:
    assert DEFAULT.patch == 34049
    assert not any(start <= DEFAULT.patch < stop for start, stop in DEFAULT.groups.values())
    assert DEFAULT.separator < DEFAULT.patch < DEFAULT.size


@pytest.mark.parametrize(
    ("text_size", "overlapping"),
    [(300, False), (959, False), (1023, False), (1024, False), (32000, False), (1024, True), (32000, True)],
)
def test_every_id_fits_a_head_that_is_a_multiple_of_64(text_size: int, overlapping: bool) -> None:
    vocabulary = Vocabulary(text_size=text_size, overlapping_discrete=overlapping)
    assert vocabulary.size % 64 == 0
    assert vocabulary.patch < vocabulary.size <= vocabulary.patch + 64


@pytest.mark.parametrize(
    ("token", "name"),
    [
        (0, "text"),
        (31999, "text"),
        (32000, "continuous"),
        (33023, "continuous"),
        (33024, "discrete"),
        (34047, "discrete"),
        (34048, "separator"),
        (34049, "patch"),
        (34050, "unused"),
        (34111, "unused"),
    ],
)
def test_modality_names_both_ends_of_each_range(token: int, name: str) -> None:
    assert DEFAULT.modality(token) == name


def test_overlapping_discrete_ids_share_the_first_1024_with_text() -> None:
    assert OVERLAPPING.groups == {"text": (0, 32000), "continuous": (32000, 33024)}
    assert OVERLAPPING.discrete_start == 0
    assert OVERLAPPING.separator == 33024
    assert OVERLAPPING.patch == 33025
    assert OVERLAPPING.size == 33088
    assert OVERLAPPING.modality(5) == "text"


def test_overlapping_discrete_ids_need_1024_text_pieces() -> None:
    with pytest.raises(UserError, match="overlapping discrete ids need at least 1024 text pieces, got 300"):
        Vocabulary(text_size=300, overlapping_discrete=True)


def test_an_odd_number_of_bins_is_refused_because_its_edges_are_not_exact() -> None:
    with pytest.raises(UserError, match="num_bins is 1023, allowed even numbers"):
        Vocabulary(num_bins=1023)


@pytest.mark.parametrize("vocabulary", [DEFAULT, OVERLAPPING, Vocabulary(text_size=300)])
def test_json_gives_the_same_vocabulary(vocabulary: Vocabulary) -> None:
    assert Vocabulary(**vocabulary.to_json()) == vocabulary


def test_the_default_text_model_has_32000_pieces_and_an_end() -> None:
    text = TextTokenizer.load()
    assert (text.size, text.end) == (32000, 2)
    assert text.decode([*text.encode("Go to the red ball."), text.end]) == "Go to the red ball."


def test_the_small_text_model_round_trips_and_never_emits_a_control_piece(text: TextTokenizer) -> None:
    ids = text.encode("the value of an object </s> is immutable")
    assert text.decode(ids) == "the value of an object </s> is immutable"
    assert text.end not in ids


@pytest.mark.parametrize("model", [b"", b"nonsense"])
def test_bytes_that_are_no_text_model_are_refused(model: bytes) -> None:
    with pytest.raises(UserError, match=r"not a SentencePiece model|no end-of-sequence"):
        TextTokenizer(model)


def test_a_text_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"cannot read the SentencePiece model /nowhere/x\.model: No such file"):
        TextTokenizer.load("/nowhere/x.model")
