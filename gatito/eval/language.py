"""Captions, answers and texts: what the model writes, how often it is right, and how well it predicts.

A source is one of a mixture's, and all of its documents are asked about, but for two that keep some apart from
training: `captions:digits` and `scenes:` are their held-out documents here. Of each document the last text is what is
to be written, and all before it is the prompt.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from tqdm import tqdm

from gatito.data.documents import open_documents
from gatito.data.domains import digits, scenes
from gatito.data.packing import pack
from gatito.errors import UserError
from gatito.eval.language_score import LanguageScore
from gatito.eval.statistics import wilson_interval
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.tokenizers import TokenSequence
from gatito.tokenizers.documents import Document, Part, Words, captioned, document_tokens

BATCH = 90
"""Prompts that are answered together."""
WINDOWS = 16
"""Windows of text that are predicted together."""
NUM_DOCUMENTS = 400
"""By default, of each source."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model wrote behind one prompt."""

    source: str
    """Of the document."""
    image: np.ndarray | None
    """(H, W, C) uint8, the first of the prompt."""
    prompt: str
    """Its texts."""
    expected: str
    """The document's last text."""
    written: str
    """The model's."""


@dataclass(frozen=True, kw_only=True)
class Language:
    """What was measured of one source."""

    score: LanguageScore
    answers: list[Answer]
    """None of texts."""


def evaluate_language(
    model: GatitoForCausalLM, processor: GatitoProcessor, source: str, limit: int | None = NUM_DOCUMENTS
) -> Language:
    """Ask about the first `limit` documents of a source, or all; raises `UserError` where it has none, and for one
    that exceeds the context."""
    found = list(islice(_documents(source), limit))
    if not found:
        raise UserError(f"{source}: it has no documents to ask about")
    answers: list[Answer] = []
    if any(len(document.parts) > 1 for document in found):
        answers = _answers(model, processor, source, found)
    bits, unigram = _bits_per_byte(model, processor, source, found)
    exact = low = high = commonest = None
    if answers:
        right = sum(answer.written == answer.expected for answer in answers)
        exact, (low, high) = right / len(answers), wilson_interval(right, len(answers))
        commonest = Counter(answer.expected for answer in answers).most_common(1)[0][1] / len(answers)
    score = LanguageScore(
        source=source,
        documents=len(found),
        exact=exact,
        ci_low=low,
        ci_high=high,
        commonest=commonest,
        bleu=_bleu(answers) if answers else None,
        bits_per_byte=bits,
        unigram_bits_per_byte=unigram,
    )
    return Language(score=score, answers=answers)


def write_after(
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    prompts: Sequence[Sequence[Part]],
    words: str,
    *,
    new_tokens: int = 10,
) -> list[str]:
    """What the model writes after each prompt, greedily, up to its end; `words` say what, on a progress bar."""
    written: list[str] = []
    for first in tqdm(range(0, len(prompts), BATCH), desc=words, unit="batch"):
        inputs = processor.prompts(prompts[first : first + BATCH]).to(model.device)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        written += processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    return written


def continue_texts(
    model: GatitoForCausalLM, processor: GatitoProcessor, beginnings: list[str], new_tokens: int = 40, seed: int = 0
) -> list[str]:
    """Sampled continuations, each with its beginning."""
    torch.manual_seed(seed)
    inputs = processor(beginnings).to(model.device)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=True, temperature=0.7, top_p=0.9)
    padding = (inputs["attention_mask"] == 0).sum(-1).tolist()
    return [processor.decode(row[count:]) for row, count in zip(ids, padding, strict=True)]


def _documents(source: str) -> Iterator[Document]:
    """Those that were kept from training, where the source keeps some."""
    if source == "captions:digits":
        return (captioned(image, caption) for image, caption in digits.held_out_pairs())
    if source == "scenes:":
        return map(scenes.document, scenes.held_out_scenes())
    return open_documents(source).documents()


def _answers(
    model: GatitoForCausalLM, processor: GatitoProcessor, source: str, documents: Sequence[Document]
) -> list[Answer]:
    wanted: list[str] = []
    for number, document in enumerate(documents):
        last = document.parts[-1]
        if not (isinstance(last, Words) and last.is_target and len(document.parts) > 1):
            raise UserError(f"{source}, document {number}: it does not end with a text that is to be written")
        wanted.append(last.text)
    longest = max(len(processor.text.encode(text)) for text in wanted) + 1
    prompts = [document.parts[:-1] for document in documents]
    written = write_after(model, processor, prompts, source, new_tokens=longest)
    return [
        Answer(
            source=source,
            image=next(document.images, None),
            prompt=" ".join(words.text for words in document.texts if not words.is_target),
            expected=expected,
            written=text,
        )
        for document, expected, text in zip(documents, wanted, written, strict=True)
    ]


def _bleu(answers: Sequence[Answer]) -> float:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        raise UserError("BLEU is counted by sacrebleu: pip install 'gatito[language]'") from None
    # Answers are shorter than four words: longer n-grams than there are do not count.
    metric = BLEU(effective_order=True)
    return float(metric.corpus_score([a.written for a in answers], [[a.expected for a in answers]]).score)


def _bits_per_byte(
    model: GatitoForCausalLM, processor: GatitoProcessor, source: str, documents: Sequence[Document]
) -> tuple[float, float]:
    """Of the model, and of the frequencies of the tokens."""
    trunk, context = model.config.trunk, int(model.config.context)
    windows: list[TokenSequence] = []
    size = 0
    for number, document in enumerate(documents):
        sequence = document_tokens(document, processor.vocabulary, processor.text)
        size += sum(len(words.text.encode()) for words in document.texts if words.is_target)
        if len(document.parts) > 1:
            if trunk.length(sequence) > context:
                raise UserError(
                    f"{source}, document {number}: {trunk.length(sequence)} positions, the context is {context}; "
                    "leave it out, or scale its images"
                )
            windows.append(sequence)
        else:  # every token but the first is predicted once
            size -= len(processor.text.decode([int(sequence.ids[0])]).encode())
            starts = range(0, max(1, len(sequence) - 1), context - 1)
            windows += [sequence.timesteps(a, min(a + context, len(sequence)), 0) for a in starts]
    nats, counts = 0.0, Counter[int]()
    for first in tqdm(range(0, len(windows), WINDOWS), desc=f"{source}, bits", unit="batch", leave=False):
        rows = windows[first : first + WINDOWS]
        batch = pack([[row] for row in rows], trunk).to(model.device)
        with torch.inference_mode():
            targets = model(**batch.tensors()).targets
        nats += float(torch.stack(list(targets.loss_sum.values())).sum())
        for row in rows:
            counts.update(row.ids[1:][row.loss_mask[1:]].tolist())
    if not size or not counts:
        raise UserError(f"{source}: its texts are too short to be predicted")
    frequencies = np.array(list(counts.values())) / counts.total()
    entropy = float(-(frequencies * np.log2(frequencies)).sum())
    return nats / math.log(2) / size, entropy * counts.total() / size
