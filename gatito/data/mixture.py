"""What a mixture is: its datasets, how they are weighted, and what is held out of them."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gatito.data.collection import AGENTS, CollectConfig
from gatito.data.documents import DOCUMENT_SCHEMES, DocumentConfig
from gatito.data.minari_episodes import is_dataset, open_minari
from gatito.data.tasks import EVALUATION_SEEDS, domain_of, groups, matching, twins
from gatito.errors import UserError, nearest
from gatito.tokenizers.images import ImageConfig

SOURCES = ("minari", "task", *DOCUMENT_SCHEMES)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One entry of a mixture: a dataset, or several that share its weight."""

    source: str
    """`minari:FOLDER_OR_ID` or a pattern of folders, `task:TASKS` (collected where missing), or documents: `text:`,
    `captions:`, `questions:`, `chat:`, `interleaved:`, `scenes:`, `emoji:`, see docs/words.md."""
    weight: float = 1.0
    """Share of the rows of a batch, relative to the other entries."""
    expert_filter: float | None = 0.8
    """Smallest normalised return of an episode that is kept; null keeps all."""
    episodes: int | None = None
    """Of `task:` sources, episodes to collect of each task; null is the mixture's `collect.episodes`. Of `minari:`
    sources, how many are taken; null takes all."""
    first_episode: int = 0
    """Of `minari:` sources, the first episode that is taken."""
    previous_reward: bool = False
    """Of control tasks, whether the reward of the timestep before is a field `previous_reward` of the observation."""
    bins: Literal["mu-law", "linear"] = "mu-law"
    """Of control tasks, how observed values that may lie outside of [-1, 1] are binned: companded as in the paper, or
    evenly over the range that each element has in the episodes that are trained on."""
    documents: int | None = None
    """Of documents, how many to take at most; null takes all."""
    tokens: int | None = None
    """Of documents, tokens at which no further one is taken; null takes all."""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise UserError(f"weight of {self.source!r} is {self.weight}, allowed > 0; leave the dataset out instead")
        if self.scheme not in SOURCES:
            raise UserError(f"source {self.source!r}: {nearest(self.scheme, SOURCES, 'kind of source')}")
        if self.episodes is not None and (self.scheme not in ("task", "minari") or self.episodes < 1):
            raise UserError(
                f"episodes of {self.source!r} is {self.episodes}; allowed 1 and more, of task: and minari: sources"
            )
        for name, is_set in (("previous_reward", self.previous_reward), ("bins: linear", self.bins == "linear")):
            if is_set and self.scheme in DOCUMENT_SCHEMES:
                raise UserError(f"{name} of {self.source!r}: allowed of control tasks, not of documents")
        if self.first_episode < 0 or (self.first_episode and self.scheme != "minari"):
            raise UserError(
                f"first_episode of {self.source!r} is {self.first_episode}; allowed 0 and more, of minari: sources"
            )
        for name, value in (("documents", self.documents), ("tokens", self.tokens)):
            if value is not None and (self.scheme not in DOCUMENT_SCHEMES or value < 1):
                raise UserError(f"{name} of {self.source!r} is {value}; allowed 1 and more, of sources of documents")

    @property
    def scheme(self) -> str:
        """The part before the colon."""
        return self.source.partition(":")[0]

    @property
    def location(self) -> str:
        """The part after the colon."""
        return self.source.partition(":")[2]


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """What is tokenized but never trained on."""

    tasks: list[str] = field(default_factory=list)
    """Task ids, groups such as `ml45-test`, and patterns."""
    episodes: float = 0.0
    """Share of the episodes of each control dataset. Which ones follows from their seeds, so that more episodes
    change nothing for those that are there."""
    seeds: list[list[int]] = field(default_factory=list)
    """Ranges [first, stop) of seeds whose episodes are held out."""

    def __post_init__(self) -> None:
        if not 0 <= self.episodes < 1:
            raise UserError(f"held_out.episodes is {self.episodes}, allowed a share from 0 to below 1")
        for seeds in self.seeds:
            if len(seeds) != 2 or not 0 <= seeds[0] < seeds[1] <= EVALUATION_SEEDS:
                raise UserError(f"held_out.seeds: {seeds}, expected [first, stop) within [0, {EVALUATION_SEEDS})")

    def has_task(self, task: str) -> bool:
        """Whether a task is held out, by its own name or by that of a twin: one that differs in what is observed."""
        return any(
            twin in groups().get(name, ()) or fnmatchcase(twin, name) for twin in twins(task) for name in self.tasks
        )

    def has_episode(self, seed: int) -> bool:
        """Whether the episode of a seed is held out of its dataset."""
        if any(first <= seed < stop for first, stop in self.seeds):
            return True
        return self.episodes > 0 and np.random.default_rng([seed, 0x4E1D]).random() < self.episodes


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What `gatito data build` builds."""

    datasets: list[DatasetConfig] = field(default_factory=list)
    """The datasets, mixed by weight."""
    domains: dict[str, float] | None = None
    """Weight of each domain (`babyai`, `text`, `captions`), which its datasets share by their own weights; null mixes
    by these alone."""
    temperature: float | None = None
    """T weighs each dataset by its entry's weight x tokens^(1/T): 1 is by size, larger is more even. Null lets the
    datasets of an entry share its weight equally."""
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    """Tasks, episodes and seeds that are never trained on."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """How `task:` sources are collected."""
    collected: str = "datasets"
    """Folder that `task:` sources are collected into."""
    text_model: str | None = None
    """SentencePiece `.model` file; null is the one of the mistral-common package (32 000 pieces)."""
    overlapping_discrete: bool = False
    """The paper's unshifted discrete ids."""
    clip_actions: bool = False
    """Clip actions further than 1e-3 outside their bounds instead of refusing them."""
    images: ImageConfig = field(default_factory=ImageConfig)
    """How large the images of documents may be."""
    threads: int = 2
    """Threads that encode texts and decode images."""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise UserError("the mixture has no datasets; list at least one under 'datasets:'")
        sources = [dataset.source for dataset in self.datasets]
        twice = next((source for source in sources if sources.count(source) > 1), None)
        if twice is not None:
            raise UserError(f"source {twice!r} is listed twice; change its weight instead")
        if self.threads < 1:
            raise UserError(f"threads is {self.threads}, allowed 1 and more")
        if self.temperature is not None and not (np.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"temperature is {self.temperature}, allowed > 0, or null")
        unknown = next((agent for agent in self.collect.agents if agent not in AGENTS), None)
        if unknown is not None:
            raise UserError(f"collect.agents: {nearest(unknown, AGENTS, 'agent')}")
        for domain, weight in (self.domains or {}).items():
            if not (np.isfinite(weight) and weight > 0):
                raise UserError(
                    f"weight of domain {domain!r} is {weight}, allowed > 0; leave its datasets out instead"
                )


@dataclass(frozen=True, kw_only=True)
class Part:
    """One dataset of a mixture."""

    entry: int
    """Index of the entry that names it."""
    source: str
    """`minari:FOLDER_OR_ID`, or a source of documents."""
    task: str
    """Task id, or the source where it is no control dataset."""
    held_out: bool = False
    """Whether all of it is."""

    @property
    def name(self) -> str:
        """Name of its folder in a store, where no other part has the same."""
        scheme, _, location = self.source.partition(":")
        folder = Path(location).name
        name = self.source if scheme != "minari" else self.task
        if scheme == "minari" and not name.endswith(folder):
            name += f"-{folder}"
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.")[-100:]

    @property
    def domain(self) -> str:
        """First part of the task id; `text`, `captions` and the like."""
        return domain_of(self.task)


def documents_of(entry: DatasetConfig, config: MixtureConfig) -> DocumentConfig:
    """How the documents of an entry are read."""
    return DocumentConfig(
        documents=entry.documents, tokens=entry.tokens, threads=config.threads, images=config.images
    )


def tasks_to_collect(config: MixtureConfig) -> dict[str, int]:
    """Task ids of the `task:` sources and how many episodes of each."""
    wanted: dict[str, int] = {}
    for entry in config.datasets:
        if entry.scheme == "task":
            for task in matching(entry.location.split(",")):
                if task in wanted:
                    raise UserError(f"task {task!r} is named by two task: sources; exclude it from one with !{task}")
                wanted[task] = entry.episodes or config.collect.episodes
    return wanted


def parts_of(config: MixtureConfig) -> list[Part]:
    """The datasets that a mixture names, each once; `task:` sources must have been collected.

    Raises `UserError` for a pattern that finds nothing, for a dataset that two entries name, and for a held-out task
    that none is of.
    """
    parts: list[Part] = []
    folders: set[str] = set()
    for index, entry in enumerate(config.datasets):
        for source in _sources(entry, config):
            task, folder = source, source
            if source.startswith("minari:"):
                opened = open_minari(source.removeprefix("minari:"))
                task, folder = opened.task, str(opened.path.resolve())
            if folder in folders:
                raise UserError(f"{source!r} is named by two entries of the mixture; leave it out of one")
            folders.add(folder)
            parts.append(Part(entry=index, source=source, task=task, held_out=config.held_out.has_task(task)))
    for name in config.held_out.tasks:
        if not any(HeldOutConfig(tasks=[name]).has_task(part.task) for part in parts):
            raise UserError(f"held_out.tasks: {nearest(name, [part.task for part in parts], 'task of the mixture')}")
    if all(part.held_out for part in parts):
        raise UserError("held_out.tasks: every task of the mixture is held out; nothing is left to train on")
    return parts


def _sources(entry: DatasetConfig, config: MixtureConfig) -> list[str]:
    if entry.scheme == "task":
        name = config.collect.name
        return [f"minari:{Path(config.collected) / task / name}" for task in matching(entry.location.split(","))]
    if entry.scheme != "minari" or not glob.has_magic(entry.location):
        return [entry.source]
    folders = [path for path in sorted(glob.glob(entry.location, recursive=True)) if is_dataset(path)]
    if not folders:
        raise UserError(f"source {entry.source!r}: the pattern finds no Minari dataset; it runs from {Path.cwd()}")
    return [f"minari:{folder}" for folder in folders]


def weights_of(parts: Sequence[Part], tokens: Sequence[int], config: MixtureConfig) -> NDArray[np.float64]:
    """Shares (n,) of the rows of a batch, which sum to 1.

    Raises `UserError` where `domains` and the domains of the datasets differ.
    """
    entries = np.array([part.entry for part in parts])
    weights = np.array([config.datasets[entry].weight for entry in entries], np.float64)
    if config.temperature is None:
        weights /= np.bincount(entries)[entries]
    else:
        weights *= np.asarray(tokens, np.float64) ** (1.0 / config.temperature)
    if config.domains is not None:
        domains = np.array([part.domain for part in parts])
        there = {part.domain for part in parts}
        for domain in sorted(set(config.domains) ^ there):
            if domain in config.domains:
                raise UserError(f"domains: {nearest(domain, there, 'domain of the mixture')}")
            raise UserError(f"domains: {domain!r} has no weight; add one, or leave its datasets out")
        for domain, weight in config.domains.items():
            of_domain = domains == domain
            weights[of_domain] *= weight / weights[of_domain].sum()
    return weights / weights.sum()
