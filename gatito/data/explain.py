"""How a sequence reads: one row per token, for people and for `gatito tokens --json`."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.codec import decode
from gatito.tokenizers.fields import Field
from gatito.tokenizers.vocabulary import ACTION_POSITION

Place = tuple[Field, int] | None
"""Field and element that a token stands for; None for the separator."""


def token_rows(
    sequence: TokenSequence, vocabulary: Vocabulary, text: TextTokenizer, layout: Layout | None = None
) -> list[dict[str, Any]]:
    """Rows `id, modality, meaning, local_position, loss_mask` of whole timesteps; the id of a patch is None."""
    places = list(_places(sequence, layout)) if layout else [None] * len(sequence)
    intervals = iter(sequence.patch_intervals.tolist())
    rows = []
    for i, (token, place) in enumerate(zip(sequence.ids.tolist(), places, strict=True)):
        # The field says it where there is one: overlapping discrete ids are also those of text.
        kind = place[0].kind if place else vocabulary.modality(token)
        local = int(sequence.local_positions[i])
        if token == vocabulary.patch:
            a, b, c, d = next(intervals)
            kind, meaning = "patch", f"16x16 pixels, rows {a}-{b} and columns {c}-{d} of 128"
        elif token == vocabulary.separator:
            meaning = "observation | action"
        elif kind == "text":
            meaning = repr(text.piece(token))
        elif layout and place:
            meaning = _meaning(layout, *place, token, is_action=local == ACTION_POSITION)
        else:
            meaning = str(token)
        rows.append(
            {
                "id": None if token == vocabulary.patch else token,
                "modality": kind,
                "meaning": meaning,
                "local_position": local,
                "loss_mask": bool(sequence.loss_mask[i]),
            }
        )
    return rows


def _places(sequence: TokenSequence, layout: Layout) -> Iterator[Place]:
    """What each token stands for, timestep by timestep; the length of a text follows from the fields around it."""
    lengths = np.diff(sequence.timestep_starts)
    fixed = layout.num_observation_tokens + layout.num_action_tokens
    for start, length in zip(sequence.timestep_starts.tolist(), lengths.tolist(), strict=False):
        of_text, taken = length - fixed, 0
        texts = [f for f in layout.observations if f.kind == "text"]
        for field in layout.observations:
            count = field.num_tokens
            if count is None:
                here = start + taken
                count = of_text if field is texts[-1] else _text_length(sequence.ids[here : here + of_text], layout)
                of_text -= count
            taken += count
            yield from ((field, j) for j in range(count))
        yield None
        yield from ((field, j) for field in layout.actions for j in range(field.size))


def _text_length(ids: np.ndarray, layout: Layout) -> int:
    """Leading ids that can be text."""
    start, stop = layout.vocabulary.groups["text"]
    other = np.flatnonzero((ids < start) | (ids >= stop))
    return int(other[0]) if len(other) else len(ids)


def _meaning(layout: Layout, field: Field, element: int, token: int, *, is_action: bool) -> str:
    ids = np.full((1, field.size), token)
    value = f"{decode(field, ids, layout.vocabulary).reshape(-1)[element]:.4g}"
    name = f"action {field.name}".rstrip() if is_action else field.name or "observation"
    return f"{name}[{element}] = {value}"
