"""Sequences that are not control: documents, and images with their text. Every text token is a target."""

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError
from gatito.tokenizers.fields import image_problem
from gatito.tokenizers.patches import PATCH, patch_intervals, to_patches
from gatito.tokenizers.sequence import TokenSequence
from gatito.tokenizers.text import TextTokenizer
from gatito.tokenizers.vocabulary import NUM_LOCAL_POSITIONS, TEXT_POSITION, Vocabulary


def text_tokens(text: str, tokenizer: TextTokenizer) -> TokenSequence:
    """A document: its pieces and the end token, all targets. Each token counts as a timestep, so that a
    window may start at any of them."""
    ids = np.array([*tokenizer.encode(text), tokenizer.end], np.int32)
    return TokenSequence(
        ids=ids,
        loss_mask=np.ones(len(ids), np.bool_),
        local_positions=np.full(len(ids), TEXT_POSITION, np.int32),
        patches=np.zeros((0, PATCH, PATCH, 3), np.uint8),
        patch_intervals=np.zeros((0, 4), np.uint8),
        timestep_starts=np.arange(len(ids) + 1, dtype=np.int64),
    )


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


def pair_tokens(
    image: NDArray[np.uint8], text: str, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> TokenSequence:
    """An (image, text) pair as one timestep: the patches, then the text with its end, which are targets."""
    picture, words = image_tokens(image, vocabulary), text_tokens(text, tokenizer)
    return TokenSequence(
        ids=np.concatenate([picture.ids, words.ids]),
        loss_mask=np.concatenate([picture.loss_mask, words.loss_mask]),
        local_positions=np.concatenate([picture.local_positions, words.local_positions]),
        patches=picture.patches,
        patch_intervals=picture.patch_intervals,
        timestep_starts=np.array([0, len(picture) + len(words)], np.int64),
    )
