"""Scenes with their questions, and symbols with their names."""

from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pygame
import pytest

from gatito.data.documents import open_documents
from gatito.data.domains import emoji, scenes
from gatito.data.domains.scenes import COLOURS, HELD_OUT, NUMBERS, SHAPES, Scene, Thing
from gatito.errors import UserError
from gatito.tokenizers.documents import Words

FONT = Path(pygame.__file__).parent / "freesansbold.ttf"
"""Without emoji: the tests ask it for what it has."""
TRAINING, TESTING = (list(islice(made(), 1200)) for made in (scenes.training_scenes, scenes.held_out_scenes))


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.things}


def answers_by_looking(scene: Scene) -> set[str]:
    """Every answer that the words of the question allow, found anew from the things."""
    words = scene.question.rstrip("?").split()
    if scene.about == "count":
        shape = {"crosses": "cross"}.get(words[3], words[3].removesuffix("s"))
        return {NUMBERS[sum((t.colour, t.shape) == (words[2], shape) for t in scene.things)]}
    if scene.about == "colour":
        return {t.colour for t in scene.things if t.shape == words[4]}
    if scene.about == "shape":
        return {t.shape for t in scene.things if t.colour == words[4]}
    first, other = [(words[i], words[i + 1]) for i in (3, 7)] if words[2] == "the" else []
    return {
        name
        for a in scene.things
        for b in scene.things
        if ((a.colour, a.shape), (b.colour, b.shape)) == (first, other)
        for name, right in {
            "left": a.row == b.row and a.column < b.column,
            "right": a.row == b.row and a.column > b.column,
            "above": a.column == b.column and a.row < b.row,
            "below": a.column == b.column and a.row > b.row,
        }.items()
        if right
    }


@pytest.mark.parametrize("seen", [TRAINING, TESTING], ids=["training", "held out"])
def test_every_question_has_exactly_its_answer(seen: list[Scene]) -> None:
    for scene in seen:
        assert answers_by_looking(scene) == {scene.answer}, scene


def test_no_training_scene_shows_a_held_out_combination() -> None:
    shown = Counter(pair for scene in TRAINING for pair in pairs_of(scene))
    assert not set(shown) & HELD_OUT
    assert len(shown) == len(COLOURS) * len(SHAPES) - len(HELD_OUT) == 16
    assert {colour for colour, _ in shown} == set(COLOURS)
    assert {shape for _, shape in shown} == set(SHAPES)


def test_every_held_out_question_is_about_a_combination_that_training_lacks() -> None:
    for scene in TESTING:
        thing = scene.things[0]
        assert thing.is_held_out
        named = {"count": (thing.colour, thing.shape), "colour": (thing.shape,), "shape": (thing.colour,)}
        for word in named.get(scene.about, (str(thing),)):
            assert word in scene.question
    assert {(scene.things[0].colour, scene.things[0].shape) for scene in TESTING} == HELD_OUT


@pytest.mark.parametrize("seen", [TRAINING, TESTING], ids=["training", "held out"])
def test_answers_are_varied(seen: list[Scene]) -> None:
    assert Counter(scene.about for scene in seen) == dict.fromkeys(scenes.QUESTIONS, 300)
    for about in scenes.QUESTIONS:
        answers = Counter(scene.answer for scene in seen if scene.about == about)
        assert answers.most_common(1)[0][1] < 0.65 * 300, answers
        assert len(answers) >= 3


def test_scene_i_is_the_same_however_many_are_drawn() -> None:
    assert list(islice(scenes.training_scenes(), 5)) == TRAINING[:5]
    assert TRAINING[0] != TESTING[0]


def test_things_lie_in_their_cells_in_their_colours() -> None:
    thing = Thing(colour="red", shape="square", row=2, column=0)
    image = Scene(things=(thing,), about="colour", question="", answer="").image()
    assert (image.shape, image.dtype) == ((48, 48, 3), np.uint8)
    assert (image[34:46, 2:14] == COLOURS["red"]).all()
    image[32:, :16] = 0
    assert image.max() == 0


def test_shapes_differ_in_many_pixels() -> None:
    images = [
        Scene(
            things=(Thing(colour="white", shape=s, row=0, column=0),), about="shape", question="", answer=""
        ).image()
        for s in SHAPES
    ]
    for i, a in enumerate(images):
        for b in images[:i]:
            assert np.count_nonzero((a != b).any(-1)) > 20


def test_scenes_take_no_location() -> None:
    with pytest.raises(UserError, match=r"scenes:48: expected 'scenes:' alone; how many is said by documents:"):
        open_documents("scenes:48")


# Emoji


@pytest.fixture
def latin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Symbols of Latin-1, and some that the font does not have."""
    monkeypatch.setattr(emoji, "BLOCKS", (range(0xA0, 0xC0), range(0x1F600, 0x1F610)))


@pytest.mark.usefixtures("latin")
def test_symbols_of_a_font_have_their_unicode_names() -> None:
    symbols = {}
    for document in open_documents(f"emoji:{FONT}").documents():
        image, words = document.parts
        assert isinstance(words, Words)
        assert isinstance(image, np.ndarray)
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert image.min() < 128
        assert image[0, 0].tolist() == [255, 255, 255]
        symbols[words.text] = image
    assert len(symbols) > 20
    assert {"section sign", "copyright sign", "degree sign"} <= set(symbols)
    assert "no-break space" not in symbols  # nothing to see
    assert not any("face" in name for name in symbols)  # a box stands for what is missing
    assert not np.array_equal(symbols["section sign"], symbols["copyright sign"])


def test_a_font_without_any_of_the_symbols_is_refused() -> None:
    with pytest.raises(UserError, match=r"emoji:.*freesansbold\.ttf: the font has none of the symbols"):
        open_documents(f"emoji:{FONT}")


@pytest.mark.usefixtures("latin")
def test_without_a_font_the_error_names_one_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emoji, "FOLDERS", (str(tmp_path),))
    with pytest.raises(UserError, match=r"emoji: none of NotoColorEmoji\.ttf, .* install a font"):
        open_documents("emoji:")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/Symbola.ttf").symlink_to(FONT)
    assert next(open_documents("emoji:").documents()).parts


def test_what_is_no_font_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.ttf").write_bytes(b"font")
    for name in ("no.ttf", "none.ttf"):
        with pytest.raises(UserError, match=rf"emoji:.*{name}: no font that can be read"):
            open_documents(f"emoji:{tmp_path}/{name}")
