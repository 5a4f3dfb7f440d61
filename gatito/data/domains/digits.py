"""Captions of real images: scikit-learn's 1 797 handwritten digits, 8x8 with 17 grey levels."""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

from gatito.data.document_source import DocumentSource, identity_of_documents
from gatito.errors import UserError
from gatito.tokenizers.documents import Document, captioned

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HELD_OUT = 360
"""The last images are kept for evaluation and never trained on."""


@cache
def _all_pairs() -> tuple[tuple[NDArray[np.uint8], str], ...]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("captions:digits needs scikit-learn: pip install 'gatito[demo]'") from None
    digits = load_digits()
    images = np.repeat(np.repeat(digits.images, 2, axis=1), 2, axis=2)  # (N, 16, 16), one patch each
    pixels = np.round(images / 16 * 255).astype(np.uint8)[..., None]
    return tuple((image, f"the digit {NAMES[label]}") for image, label in zip(pixels, digits.target, strict=True))


def training_pairs() -> tuple[tuple[NDArray[np.uint8], str], ...]:
    """(image (16, 16, 1), caption) of all but the held-out images."""
    return _all_pairs()[:-HELD_OUT]


def held_out_pairs() -> tuple[tuple[NDArray[np.uint8], str], ...]:
    """(image (16, 16, 1), caption) of the held-out images."""
    return _all_pairs()[-HELD_OUT:]


def open_digits() -> DocumentSource:
    """The training pairs as documents."""

    def documents() -> Iterator[Document]:
        return (captioned(image, caption) for image, caption in training_pairs())

    return DocumentSource(kind="pairs", rows=documents, identity=lambda: identity_of_documents(documents()))
