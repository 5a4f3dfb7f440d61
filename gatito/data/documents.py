"""What is no control: texts, images with text, conversations; from their sources to token sequences."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gatito.data import archives
from gatito.data.document_source import DocumentSource
from gatito.data.domains import digits, emoji, scenes, texts
from gatito.data.image_texts import open_captions, open_chat, open_interleaved, open_questions
from gatito.data.rows import columns_of
from gatito.data.store import StoreWriter
from gatito.errors import UserError, nearest
from gatito.tokenizers import TextTokenizer, TokenSequence, Vocabulary
from gatito.tokenizers.documents import Document, as_one_timestep, document_tokens, documents_tokens
from gatito.tokenizers.images import ImageConfig

BATCH_CHARACTERS = 1 << 18
"""Of texts that are encoded together."""
BATCH_BYTES = 1 << 20
"""Of pixels that are in memory together."""


@dataclass(frozen=True, kw_only=True)
class DocumentConfig:
    """How documents are read and how many of them."""

    documents: int | None = None
    """Documents that are taken at most; null takes all."""
    tokens: int | None = None
    """Tokens at which no further document is taken; null takes all."""
    threads: int = 2
    """Threads that encode texts and decode images."""
    images: ImageConfig = field(default_factory=ImageConfig)
    """How large images may be."""


def open_documents(source: str, images: ImageConfig | None = None) -> DocumentSource:
    """Open a source such as `text:notes.txt`; raises `UserError` where there is none.

    A folder or file is looked at here; what it holds is read by `documents`.
    """
    scheme, _, location = source.partition(":")
    if scheme not in _OPENERS:
        raise UserError(f"source {source!r}: {nearest(scheme, _OPENERS, 'kind of documents')}")
    return _OPENERS[scheme](location, images or ImageConfig())


def document_sequences(
    source: DocumentSource, vocabulary: Vocabulary, text: TextTokenizer, config: DocumentConfig
) -> Iterator[TokenSequence]:
    """The tokens of the documents of a source, one after another; the texts of many are encoded together, and
    the images of the next ones are decoded meanwhile."""
    if source.is_endless and config.documents is None and config.tokens is None:
        raise UserError("the source has no end; say how much of it by documents: or tokens:")
    documents = islice(source.documents(config.threads), config.documents)
    taken = 0
    for batch in _batches(documents):
        for sequence in documents_tokens(batch, vocabulary, text, config.threads):
            if config.tokens is not None and taken >= config.tokens:
                return
            taken += len(sequence)
            yield as_one_timestep(sequence) if source.kind == "pairs" else sequence


def document_at(source: str, index: int, vocabulary: Vocabulary, text: TextTokenizer) -> TokenSequence:
    """The tokens of one document; raises `UserError` where there are fewer."""
    opened = open_documents(source)
    count = 0
    with _naming(source):
        for count, document in enumerate(opened.documents(), start=1):
            if count > index:
                sequence = document_tokens(document, vocabulary, text)
                return as_one_timestep(sequence) if opened.kind == "pairs" else sequence
    raise UserError(f"{source} has no episode {index}; it has {count}, 0 to {count - 1}")


def documents_key(source: str, config: DocumentConfig) -> tuple[str, dict[str, Any]]:
    """Hash of what is read of a source, and how; together they decide what `write_documents` writes."""
    opened = open_documents(source, config.images)
    how = {"kind": opened.kind, "documents": config.documents, "tokens": config.tokens}
    with _naming(source):
        identity = opened.identity()
    return identity, how if opened.kind == "text" else how | {"images": asdict(config.images)}


def write_documents(
    source: str,
    folder: Path,
    vocabulary: Vocabulary,
    text: TextTokenizer,
    config: DocumentConfig,
    metadata: dict[str, Any],
) -> None:
    """Write the dataset of a source into a folder; raises `UserError` for what is no document."""
    opened = open_documents(source, config.images)
    agent = source.partition(":")[0]
    with StoreWriter(folder, vocabulary) as writer:
        sequences = document_sequences(opened, vocabulary, text, config)
        with _naming(source):
            for sequence in tqdm(sequences, desc=source, unit="document", leave=False, delay=1.0):
                writer.write(sequence, agent)
        writer.close(metadata | {"kind": opened.kind})


ENDLESS = 1000
"""Documents that are looked at of a source without an end."""


@dataclass(kw_only=True)
class DocumentCounts:
    """What the documents of a source come to."""

    documents: int = 0
    tokens: int = 0
    targets: int = 0
    images: int = 0
    longest: int = 0
    """Tokens of the longest document."""


def count_documents(source: str, vocabulary: Vocabulary, text: TextTokenizer) -> DocumentCounts:
    """Read and tokenize a source, of one without an end the first thousand; raises `UserError` for the first document
    that would not train."""
    opened = open_documents(source)
    config = DocumentConfig(documents=ENDLESS if opened.is_endless else None)
    counts = DocumentCounts()
    with _naming(source):
        sequences = document_sequences(opened, vocabulary, text, config)
        for sequence in tqdm(sequences, desc=source, unit="document", leave=False, delay=1.0):
            counts.documents += 1
            counts.tokens += len(sequence)
            counts.targets += int(sequence.loss_mask.sum())
            counts.images += int(((sequence.ids == vocabulary.patch) & (sequence.local_positions == 0)).sum())
            counts.longest = max(counts.longest, len(sequence))
    if not counts.documents:
        raise UserError(f"{source}: it has no documents")
    return counts


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Say in front of errors which source they are of."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _captions(location: str, images: ImageConfig) -> DocumentSource:
    if location == "digits":
        return digits.open_digits()
    place = columns_of(location, "text")[0]
    if not (place.startswith("hf:") or "/" in place or place.endswith(archives.SUFFIX) or Path(place).is_dir()):
        raise UserError(f"{nearest(location, ['digits'], 'caption dataset')}; or name a folder")
    return open_captions(location, images)


_OPENERS: dict[str, Callable[[str, ImageConfig], DocumentSource]] = {
    "text": lambda location, _: texts.open_texts(location),
    "captions": _captions,
    "questions": open_questions,
    "chat": open_chat,
    "interleaved": open_interleaved,
    "scenes": lambda location, _: scenes.open_scenes(location),
    "emoji": lambda location, _: emoji.open_emoji(location),
}
DOCUMENT_SCHEMES = tuple(_OPENERS)
"""Kinds of sources that are no control."""


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = size = 0
    for document in documents:
        batch.append(document)
        characters += sum(len(words.text) for words in document.texts)
        size += sum(image.nbytes for image in document.images)
        if characters >= BATCH_CHARACTERS or size >= BATCH_BYTES:
            yield batch
            batch, characters, size = [], 0, 0
    if batch:
        yield batch
