"""How a sequence reads: one row per token, for people and for `gatito tokens --json`."""

from typing import Any

import numpy as np

from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.codec import decode
from gatito.tokenizers.vocabulary import ACTION_POSITION


def token_rows(
    sequence: TokenSequence, vocabulary: Vocabulary, text: TextTokenizer, layout: Layout | None = None
) -> list[dict[str, Any]]:
    """Rows `id, modality, meaning, local_position, loss_mask`; the id of a patch is None."""
    rows = []
    patch = 0
    action = 0
    columns = _meanings(layout) if layout else []
    for i, token in enumerate(sequence.ids.tolist()):
        local = int(sequence.local_positions[i])
        modality = vocabulary.modality(token)
        if token == vocabulary.patch:
            a, b, c, d = sequence.patch_intervals[patch].tolist()
            meaning = f"16x16 pixels, rows {a}-{b} and columns {c}-{d} of 128"
            patch += 1
        elif token == vocabulary.separator:
            meaning, action = "observation | action", 0
        elif local == ACTION_POSITION and layout:
            meaning = _action_meaning(layout, action, token)
            action += 1
        elif modality == "text":
            meaning = repr(text.piece(token))
        else:
            meaning = _observation_meaning(layout, columns, sequence, i, token) if layout else str(token)
        rows.append(
            {
                "id": None if token == vocabulary.patch else token,
                "modality": modality,
                "meaning": meaning,
                "local_position": local,
                "loss_mask": bool(sequence.loss_mask[i]),
            }
        )
    return rows


def _meanings(layout: Layout) -> list[tuple[Any, int]]:
    """(field, element) of the numeric observation tokens, in order."""
    return [(f, j) for f in layout.observations if f.kind in ("continuous", "discrete") for j in range(f.size)]


def _observation_meaning(
    layout: Layout, columns: list[tuple[Any, int]], sequence: TokenSequence, i: int, token: int
) -> str:
    start = i - int(sequence.local_positions[i])
    groups = [g for name, g in layout.vocabulary.groups.items() if name != "text"]
    before = sum(any(a <= t < b for a, b in groups) for t in sequence.ids[start:i].tolist())
    field, element = columns[before]
    return f"{field.name or 'observation'}[{element}] = {_value(layout, field, element, token)}"


def _action_meaning(layout: Layout, action: int, token: int) -> str:
    columns = [(f, j) for f in layout.actions for j in range(f.size)]
    field, element = columns[action % len(columns)]
    return f"action {field.name}[{element}] = {_value(layout, field, element, token)}".replace(" [", "[")


def _value(layout: Layout, field: Any, element: int, token: int) -> str:
    ids = np.full((1, field.size), token)
    return f"{decode(field, ids, layout.vocabulary).reshape(-1)[element]:.4g}"
