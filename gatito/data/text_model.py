"""SentencePiece models of your own texts, which lose nothing but U+2581: any other text decodes to itself."""

import io
import os
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

import sentencepiece
from tqdm import tqdm

from gatito.data.document_source import DocumentSource
from gatito.data.documents import open_documents
from gatito.errors import UserError
from gatito.tokenizers import TextTokenizer

NUM_BYTES = 256
"""Pieces for single bytes, out of which everything can be spelled."""
LONGEST = 4096
"""Characters of a line that are looked at together; longer ones are cut."""
NUM_LINES = 2_000_000
"""Lines that are learned from; of more, so many are drawn at random."""
SEED = 0
"""Of that draw."""

Algorithm = Literal["bpe", "unigram"]


def train_text_model(
    sources: Sequence[str], size: int, algorithm: Algorithm = "bpe", threads: int = 1
) -> TextTokenizer:
    """Train `size` pieces on all texts of sources of documents; ids 0 to 2 are unknown, begin and end.

    Raises `UserError` where there is no text, or not so many pieces in it.
    """
    if size <= NUM_BYTES + 3:
        raise UserError(
            f"--size is {size}, allowed {NUM_BYTES + 4} and more: {NUM_BYTES} bytes and 3 marks are pieces"
        )
    lines = _lines([open_documents(source) for source in sources])
    first = next(lines, None)
    if first is None:
        raise UserError(f"{', '.join(sources)}: there is no text to learn pieces from; name other sources")
    read, model = chain([first], lines), io.BytesIO()
    sentencepiece.set_random_generator_seed(SEED)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(tqdm(read, desc="read texts", unit="line", leave=False, delay=1.0)),
            model_writer=model,
            vocab_size=size,
            model_type=algorithm,
            num_threads=threads,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # Nothing is rewritten: indentation, line ends and every form of a letter come back as they were.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * LONGEST,
            input_sentence_size=NUM_LINES,
            shuffle_input_sentence=True,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or str(error)
        raise UserError(f"SentencePiece cannot train --size {size} on {', '.join(sources)}: {reason}") from None
    return TextTokenizer(model.getvalue())


def write_text_model(model: TextTokenizer, out: Path) -> None:
    """Write a `.model` file that is not there yet, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        temporary.write_bytes(model.model)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)


def _lines(sources: Sequence[DocumentSource]) -> Iterator[str]:
    """All lines of all texts."""
    for source in sources:
        if source.is_endless:
            raise UserError("a source without an end cannot be learned from as a whole; name files")
        for document in source.documents():
            for words in document.texts:
                for line in words.text.split("\n"):
                    yield from (line[first : first + LONGEST] for first in range(0, len(line), LONGEST))
