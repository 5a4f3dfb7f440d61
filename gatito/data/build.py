"""From Minari datasets, texts and captioned images to a tokenized store."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gatito.data.checks import Clipped, checked_tokens
from gatito.data.domains import digits, texts
from gatito.data.filter import is_expert
from gatito.data.minari_episodes import MinariSource, open_minari
from gatito.data.publish import check_writable, published
from gatito.data.store import Store, StoreWriter, open_store, write_mixture
from gatito.data.tasks import references, registry
from gatito.errors import UserError, nearest
from gatito.tokenizers import Layout, TextTokenizer, TokenSequence, Vocabulary, pair_tokens, text_tokens

SOURCES = ("minari", "text", "captions")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset of a mixture."""

    source: str
    """`minari:FOLDER_OR_ID`, `text:python-docs`, `text:FILE_OR_FOLDER` or `captions:digits`."""
    weight: float = 1.0
    """Share of the rows of a batch, relative to the other datasets."""
    expert_filter: float | None = 0.8
    """Smallest normalised return of an episode that is kept; null keeps all."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"weight of {self.source!r} is {self.weight}, allowed > 0; leave the dataset out instead")
        if self.scheme not in SOURCES:
            raise UserError(f"source {self.source!r}: {nearest(self.scheme, SOURCES, 'kind of source')}")

    @property
    def scheme(self) -> str:
        """The part before the colon."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The part after the colon."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What `gatito data build` builds."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """The datasets, mixed by weight."""
    text_model: str | None = None
    """SentencePiece `.model` file; null is the one of the mistral-common package (32 000 pieces)."""
    overlapping_discrete: bool = False
    """The paper's unshifted discrete ids."""
    clip_actions: bool = False
    """Clip actions further than 1e-3 outside their bounds instead of refusing them."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UserError("the mixture has no datasets; list at least one under 'datasets:'")
        sources = [dataset.source for dataset in self.datasets]
        twice = next((source for source in sources if sources.count(source) > 1), None)
        if twice is not None:
            raise UserError(f"source {twice!r} is listed twice; change its weight instead")


def open_layout(source: MinariSource, vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    """The layout of a dataset: from its spaces, with the overrides of its task where it is a known one."""
    spec = registry().get(source.task)
    try:
        return Layout.from_spaces(
            source.dataset.observation_space,
            source.dataset.action_space,
            vocabulary=vocabulary,
            text=text,
            overrides=spec.overrides if spec else None,
        )
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def build(config: MixtureConfig, out: Path) -> Store:
    """Build the store `out`; a failure leaves nothing behind. Raises `UserError` for bad data."""
    check_writable(out)
    text = TextTokenizer.load(config.text_model)
    vocabulary = Vocabulary(text_size=text.size, overlapping_discrete=config.overlapping_discrete)
    with published(out) as folder:
        names: list[str] = []
        for dataset in tqdm(config.datasets, desc="tokenize", unit="dataset"):
            name = _unused_name(dataset, names)
            names.append(name)
            with StoreWriter(folder / name, vocabulary) as writer:
                _build_dataset(dataset, name, writer, text, config)
        write_mixture(folder, vocabulary, text, names)
        open_store(folder, verify=False).layouts()
    return open_store(out, verify=False)


def _unused_name(dataset: DatasetConfig, names: list[str]) -> str:
    """A folder name for a dataset; `a/b` and `a-b` would have the same one."""
    name = re.sub(r"[:/\\]", "-", dataset.source).strip("-.")
    numbered = (f"{name}-{k}" for k in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in names)


def _build_dataset(
    config: DatasetConfig, name: str, writer: StoreWriter, text: TextTokenizer, mixture: MixtureConfig
) -> None:
    metadata: dict[str, Any] = {"name": name, "source": config.source, "weight": config.weight}
    if config.scheme == "minari":
        source = open_minari(config.location)
        layout = open_layout(source, writer.vocabulary, text)
        clipped = Clipped()
        kept = _kept_episodes(source, config)
        for index in kept:
            where = f"{source.path}, episode {index}"
            sequence, more = checked_tokens(
                layout, source.episode(index), where=where, clip_actions=mixture.clip_actions
            )
            clipped += more
            writer.write(sequence, source.agent)
        metadata |= {
            "kind": "control",
            "task": source.task,
            "layout": layout.to_json(),
            "filtered_episodes": len(source) - len(kept),
            "clipped_observations": clipped.observations,
            "clipped_actions": clipped.actions,
        }
    elif config.scheme == "text":
        for document in texts.documents(config.location):
            writer.write(text_tokens(document, text), "text")
        metadata |= {"kind": "text", "task": config.source}
    else:
        for sequence in _captions(config.location, writer.vocabulary, text):
            writer.write(sequence, "captions")
        metadata |= {"kind": "pairs", "task": config.source}
    writer.close(metadata)


def _kept_episodes(source: MinariSource, config: DatasetConfig) -> list[int]:
    if config.expert_filter is None:
        return list(range(len(source)))
    known = references().get(source.task)
    if known is None:
        raise UserError(
            f"{source.path}: the expert filter needs the random policy's return of task {source.task!r}; measure it "
            "(gatito tasks --measure) or set expert_filter: null"
        )
    returns = np.array([episode.total_return for episode in source.episodes()])
    try:
        return [int(i) for i in np.flatnonzero(is_expert(returns, known.random, config.expert_filter))]
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def _captions(name: str, vocabulary: Vocabulary, text: TextTokenizer) -> Iterator[TokenSequence]:
    if name != "digits":
        raise UserError(nearest(name, ["digits"], "caption dataset"))
    for image, caption in digits.training_pairs():
        yield pair_tokens(image, caption, vocabulary, text)
