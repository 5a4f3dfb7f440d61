"""Questions about generated scenes: how many, which colour, which shape, where. Composition can be tested on them.

Up to four of four shapes in five colours lie in the nine cells of 48 x 48 pixels. Of the twenty pairs of a colour and
a shape four are held out (`HELD_OUT`): no training scene shows one, though each of these colours and shapes is seen
in other pairs. Every held-out question is about one. Scene i is a pure function of (split, i); there is no last one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gatito.data.document_source import DocumentSource, identity_of_documents
from gatito.errors import UserError
from gatito.tokenizers.documents import Document, conversation
from gatito.tokenizers.patches import PATCH

SIDE = 3
"""Cells along a side."""
MOST = 4
"""Things in a scene."""
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross")
HELD_OUT = frozenset({("red", "circle"), ("green", "square"), ("blue", "triangle"), ("yellow", "cross")})
"""(colour, shape) pairs that no training scene has."""
NUMBERS = ("zero", "one", "two", "three", "four")
Question = Literal["count", "colour", "shape", "relation"]
QUESTIONS: tuple[Question, ...] = ("count", "colour", "shape", "relation")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A coloured shape in its cell."""

    colour: str
    """One of `COLOURS`."""
    shape: str
    """One of `SHAPES`."""
    row: int
    """From the top."""
    column: int
    """From the left."""

    @property
    def is_held_out(self) -> bool:
        """Whether no training scene has its pair of colour and shape."""
        return (self.colour, self.shape) in HELD_OUT

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Things with a question about the first of them, and its answer."""

    things: tuple[Thing, ...]
    """What lies there, no two in one cell."""
    about: Question
    """What is asked."""
    question: str
    """In words."""
    answer: str
    """A word."""

    def image(self) -> NDArray[np.uint8]:
        """Pixels (48, 48, 3)."""
        pixels = np.zeros((SIDE * PATCH, SIDE * PATCH, 3), np.uint8)
        for thing in self.things:
            y, x = thing.row * PATCH, thing.column * PATCH
            pixels[y : y + PATCH, x : x + PATCH][_OUTLINES[thing.shape]] = COLOURS[thing.colour]
        return pixels


def training_scenes() -> Iterator[Scene]:
    """Scenes without a held-out pair, and no end of them."""
    return (_scene(0, i) for i in count())


def held_out_scenes() -> Iterator[Scene]:
    """Scenes with a question about a held-out pair, and no end of them."""
    return (_scene(1, i) for i in count())


def document(scene: Scene) -> Document:
    """The scene, the question, and the answer as a target."""
    return conversation([([scene.image(), scene.question], scene.answer)])


def open_scenes(location: str) -> DocumentSource:
    """The training scenes as documents; a mixture says how many by `documents:` or `tokens:`."""
    if location:
        raise UserError(f"scenes:{location}: expected 'scenes:' alone; how many is said by documents: or tokens:")

    def documents() -> Iterator[Document]:
        return map(document, training_scenes())

    def identity() -> str:
        return identity_of_documents(document for _, document in zip(range(64), documents(), strict=False))

    return DocumentSource(kind="pairs", rows=documents, identity=identity, is_endless=True)


def _scene(split: int, index: int) -> Scene:
    """Draw until a question has one answer."""
    rng = np.random.default_rng([0x5CE7E, split, index])
    about = QUESTIONS[index % len(QUESTIONS)]
    while True:
        things = _things(rng, held_out=bool(split))
        asked = _asked(about, things, rng)
        if asked is not None:
            return Scene(things=things, about=about, question=asked[0], answer=asked[1])


def _things(rng: np.random.Generator, *, held_out: bool) -> tuple[Thing, ...]:
    """Up to `MOST` things; the first is of a held-out pair where asked for, and none is otherwise."""
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT]
    chosen = [pairs[k] for k in rng.integers(len(pairs), size=rng.integers(1, MOST + 1))]
    if len(chosen) > 1 and rng.random() < 0.5:
        chosen[1] = chosen[0]  # else there would hardly ever be two of a kind to count
    if held_out:
        first = sorted(HELD_OUT)[rng.integers(len(HELD_OUT))]
        chosen = [first if pair == chosen[0] else pair for pair in chosen]
    cells = rng.permutation(SIDE * SIDE)[: len(chosen)]
    return tuple(
        Thing(colour=colour, shape=shape, row=int(cell) // SIDE, column=int(cell) % SIDE)
        for (colour, shape), cell in zip(chosen, cells, strict=True)
    )


def _asked(about: Question, things: tuple[Thing, ...], rng: np.random.Generator) -> tuple[str, str] | None:
    """Question about the first thing and its answer; None where there is not one answer."""
    first, others = things[0], things[1:]
    if about == "count":
        same = sum(str(thing) == str(first) for thing in things)
        return f"how many {first.colour} {_plural(first.shape)} are there?", NUMBERS[same]
    if about == "colour" and all(thing.shape != first.shape for thing in others):
        return f"what colour is the {first.shape}?", first.colour
    if about == "shape" and all(thing.colour != first.colour for thing in others):
        return f"what shape is the {first.colour} thing?", first.shape
    if about == "relation" and others:
        other = others[rng.integers(len(others))]
        names = [str(thing) for thing in things]
        where = _direction(first, other)
        if where and names.count(str(first)) == names.count(str(other)) == 1:
            return f"where is the {first} from the {other}?", where
    return None


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else f"{shape}s"


def _direction(first: Thing, other: Thing) -> str | None:
    """Where the first lies from the other, in the same row or column."""
    if first.row == other.row:
        return "left" if first.column < other.column else "right"
    if first.column == other.column:
        return "above" if first.row < other.row else "below"
    return None


def _outlines() -> dict[str, NDArray[np.bool_]]:
    """The pixels (16, 16) that each shape covers, with an empty border of 2."""
    y, x = np.mgrid[:PATCH, :PATCH] - (PATCH - 1) / 2
    inside = np.maximum(abs(x), abs(y)) < PATCH / 2 - 2
    return {
        "circle": x**2 + y**2 < (PATCH / 2 - 2) ** 2,
        "square": inside,
        "triangle": inside & (2 * abs(x) <= y + PATCH / 2 - 2),
        "cross": inside & (np.minimum(abs(x), abs(y)) < 2),
    }


_OUTLINES = _outlines()
