"""Sequences that are not control: texts, images with text, conversations.

A `Document` is a sequence of parts, images and texts, of which some are targets. An end token follows every text that
is one, where the next text is none or there is no other; it is a target too, so that the model learns to stop.

    text               t t t t e
    caption            [patches] t t t e
    question           [patches] q q q q t e
    conversation       [patches] [patches] q q q t t e q q q t e
    interleaved        t t t [patches] t t [patches] t t e            q: no target; t: a target; e: the end, a target

How a turn of a conversation reads is said in `asked` and nowhere else, so that who asks a trained model asks as it
learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.tokenizers.fields import image_problem
from gatito.tokenizers.patches import PATCH, patch_intervals, to_patches
from gatito.tokenizers.sequence import TokenSequence, concatenate
from gatito.tokenizers.text import TextTokenizer
from gatito.tokenizers.vocabulary import NUM_LOCAL_POSITIONS, TEXT_POSITION, Vocabulary

QUESTION = "Q: "
"""In front of the first text of who asks."""
ANSWER = "A:"
"""After all that who asks says; the answer follows as a text of its own."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """A text of a document."""

    text: str
    """What it says."""
    is_target: bool = True
    """Whether the model learns to write it."""


Part = Words | NDArray[np.uint8]
"""A text, or an image (H, W, C)."""


@dataclass(frozen=True)
class Document:
    """Texts and images in their order."""

    parts: tuple[Part, ...]
    """At least one of them a text that is a target."""

    @property
    def texts(self) -> Iterator[Words]:
        """Its texts."""
        return (part for part in self.parts if isinstance(part, Words))

    @property
    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Its images (H, W, C)."""
        return (part for part in self.parts if not isinstance(part, Words))


def captioned(image: NDArray[np.uint8], text: str) -> Document:
    """An image, then its caption as a target."""
    return Document((image, Words(text=text)))


def asked(content: Sequence[NDArray[np.uint8] | str]) -> tuple[Part, ...]:
    """What is said to the model, up to where it answers; none of it is a target.

    `[image, "What colour is it?"]` is the image, `Q: What colour is it?` and `A:`.
    """
    parts: list[Part] = []
    prefix = QUESTION
    for piece in content:
        if isinstance(piece, str):
            parts.append(Words(text=prefix + piece, is_target=False))
            prefix = ""
        else:
            parts.append(piece)
    return (*parts, Words(text=ANSWER, is_target=False))


def conversation(
    turns: Sequence[tuple[Sequence[NDArray[np.uint8] | str], str]], instruction: str | None = None
) -> Document:
    """Turns of what is said to the model and what it answers, which is a target; `instruction` stands in front."""
    parts: list[Part] = [] if instruction is None else [Words(text=instruction, is_target=False)]
    for content, answer in turns:
        parts += [*asked(content), Words(text=answer)]
    return Document(tuple(parts))


def document_tokens(document: Document, vocabulary: Vocabulary, tokenizer: TextTokenizer) -> TokenSequence:
    """The tokens of one document, see `documents_tokens`."""
    return documents_tokens([document], vocabulary, tokenizer)[0]


def documents_tokens(
    documents: Sequence[Document], vocabulary: Vocabulary, tokenizer: TextTokenizer, threads: int = 1
) -> list[TokenSequence]:
    """The tokens of documents, whose texts are encoded together.

    A timestep is where a window of a long document may begin: each text token and each image where all texts are
    targets, each turn otherwise, which ends with an end token. Raises `UserError` for an image that is none or too
    large, and for a document without a target.
    """
    ids = iter(tokenizer.encode_batch([words.text for d in documents for words in d.texts], threads))
    return [_assembled(document, ids, vocabulary, tokenizer.end) for document in documents]


def prompt_tokens(parts: Sequence[Part], vocabulary: Vocabulary, tokenizer: TextTokenizer) -> TokenSequence:
    """The tokens of what is said to the model, up to where it goes on: those of a document, without its last end.

    Raises `UserError` where there are none, and for an image that is none or too large.
    """
    ids = iter(tokenizer.encode_batch([part.text for part in parts if isinstance(part, Words)]))
    pieces = _pieces(parts, ids, [*_ends(parts)[:-1], False], vocabulary, tokenizer.end)
    if not sum(map(len, pieces)):
        raise UserError("an empty prompt: give a text or an image")
    return concatenate(pieces)


def text_tokens(text: str, tokenizer: TextTokenizer) -> TokenSequence:
    """A document of one text: its pieces and the end token, all targets. Each token counts as a timestep, so that a
    window may start at any of them."""
    [ids] = tokenizer.encode_batch([text])
    return _text(np.append(ids, tokenizer.end), is_target=True)


def image_tokens(image: NDArray[np.uint8], vocabulary: Vocabulary) -> TokenSequence:
    """An image (H, W, C) as patches in raster order, none of them a target."""
    problem = image_problem(image.shape, str(image.dtype))
    if problem:
        raise UserError(f"image: {problem}")
    patches = to_patches(image[None])[0]
    P = len(patches)
    if P > NUM_LOCAL_POSITIONS:
        raise UserError(f"an image of {image.shape} gives {P} patches, allowed {NUM_LOCAL_POSITIONS}; scale it")
    return TokenSequence(
        ids=np.full(P, vocabulary.patch, np.int32),
        loss_mask=np.zeros(P, np.bool_),
        local_positions=np.arange(P, dtype=np.int32),
        patches=patches,
        patch_intervals=patch_intervals(*image.shape[:2]),
        timestep_starts=np.array([0, P], np.int64),
    )


def as_one_timestep(sequence: TokenSequence) -> TokenSequence:
    """The sequence as one timestep: it is never begun in its middle."""
    return replace(sequence, timestep_starts=np.array([0, len(sequence)], np.int64))


def pair_tokens(
    image: NDArray[np.uint8], text: str, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> TokenSequence:
    """An (image, text) pair as one timestep: the patches, then the text with its end, which are targets."""
    return as_one_timestep(document_tokens(captioned(image, text), vocabulary, tokenizer))


def _assembled(
    document: Document, ids: Iterator[NDArray[np.int32]], vocabulary: Vocabulary, end: int
) -> TokenSequence:
    """One document; the ids of its texts are taken from `ids`, which goes on with those of the next document."""
    if not any(words.is_target for words in document.texts):
        raise UserError("a document without a text to learn from; give it a caption, an answer or a text")
    ends = _ends(document.parts)
    pieces = _pieces(document.parts, ids, ends, vocabulary, end)
    sequence = concatenate(pieces)
    if all(words.is_target for words in document.texts):
        return sequence
    lengths = np.cumsum([len(piece) for piece in pieces])
    starts = np.unique([0, *lengths[ends], lengths[-1]])
    return replace(sequence, timestep_starts=starts.astype(np.int64))


def _pieces(
    parts: Sequence[Part], ids: Iterator[NDArray[np.int32]], ends: Sequence[bool], vocabulary: Vocabulary, end: int
) -> list[TokenSequence]:
    """The tokens of each part, with an end behind those that have one."""
    pieces = []
    for part, is_end in zip(parts, ends, strict=False):
        if isinstance(part, Words):
            own = next(ids)
            pieces.append(_text(np.append(own, end) if is_end else own, part.is_target))
        else:
            pieces.append(image_tokens(part, vocabulary))
    return pieces


def _ends(parts: Sequence[Part]) -> list[bool]:
    """Whether an end token follows each part: the last target of each run of them."""
    ends = [False] * len(parts)
    texts = [(i, part.is_target) for i, part in enumerate(parts) if isinstance(part, Words)]
    for is_target, run in groupby(texts, key=lambda text: text[1]):
        if is_target:
            ends[[i for i, _ in run][-1]] = True
    return ends


def _text(ids: NDArray[np.integer], is_target: bool) -> TokenSequence:
    """Text tokens, each of them a timestep."""
    N = len(ids)
    return TokenSequence(
        ids=ids.astype(np.int32),
        loss_mask=np.full(N, is_target, np.bool_),
        local_positions=np.full(N, TEXT_POSITION, np.int32),
        patches=np.zeros((0, PATCH, PATCH, 3), np.uint8),
        patch_intervals=np.zeros((0, 4), np.uint8),
        timestep_starts=np.arange(N + 1, dtype=np.int64),
    )
