"""From Minari datasets and sources of documents to a tokenized store.

A dataset that the store has already, built from the same files in the same way, is left as it is.
"""

import contextlib
import hashlib
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from gatito.data.checks import Clipped, checked_tokens
from gatito.data.collect import collect
from gatito.data.documents import documents_key, write_documents
from gatito.data.engine import EngineName, ray_engine
from gatito.data.filter import is_expert
from gatito.data.minari_episodes import MinariSource, open_minari
from gatito.data.mixture import (
    DatasetConfig,
    MixtureConfig,
    Part,
    documents_of,
    parts_of,
    tasks_to_collect,
    weights_of,
)
from gatito.data.previous_reward import has_field, rewarded_task
from gatito.data.publish import check_writable, published
from gatito.data.store import (
    HELD_OUT,
    SCHEMA,
    Store,
    StoreWriter,
    is_store,
    layouts_of,
    open_dataset,
    open_store,
    read_mixture,
    sha256_of,
    write_mixture,
)
from gatito.data.tasks import EVALUATION_SEEDS, matching, references, registry
from gatito.errors import UserError
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary


def open_layout(source: MinariSource, vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
    """The layout of a dataset: from its spaces, with the overrides of its task where it is a known one."""
    spec = registry().get(source.task)
    try:
        space = source.observation_space
        if spec is not None and has_field(space):
            spec = rewarded_task(spec)
        return Layout.from_spaces(
            space,
            source.action_space,
            vocabulary=vocabulary,
            text=text,
            overrides=spec.overrides if spec else None,
        )
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None


def build(config: MixtureConfig, out: Path, *, engine: EngineName = "local", processes: int = 2) -> Store:
    """Build the store `out`, or bring it up to date; raises `UserError` for bad data.

    With the engine `ray` datasets are tokenized by its workers, on this machine so many, and collected there too;
    what they wrote comes back and is the same to the bit. `task:` sources are collected first, where they are
    missing. Each dataset is published by rename and `mixture.json` last, so that the same call continues a build that
    was killed. What is there already stays.
    """
    check_writable(out)
    text = TextTokenizer.load(config.text_model)
    vocabulary = Vocabulary(text_size=text.size, overlapping_discrete=config.overlapping_discrete)
    _check_same_ids(out, vocabulary, text)
    wanted = tasks_to_collect(config)
    _check_references(config)
    if wanted:
        how = config.collect if engine == "local" else replace(config.collect, engine=engine, processes=processes)
        collect(list(wanted), Path(config.collected), how, wanted)
    parts = parts_of(config)
    trained = [part for part in parts if not part.held_out]
    weights_of(trained, [1] * len(trained), config)  # refuses wrong domains before anything is built
    builder = _Builder(config, vocabulary, text)
    bar = tqdm(parts, desc="hash", unit="dataset", leave=False, delay=1.0)
    keys = [builder.key(part) for part in bar]  # all sources are looked at before the first is built
    built = _built(out, vocabulary)
    names: list[str] = []
    left: list[_BuildJob] = []
    for part, key in zip(parts, keys, strict=True):
        if key in built:
            names.append(built.pop(key))
        else:
            names.append(_unused_name(part.name, [*names, *(built[k] for k in keys if k in built)]))
            left.append(_BuildJob(builder=builder, part=part, name=names[-1], key=key))
    with tqdm(total=len(parts), initial=len(parts) - len(left), desc="tokenize", unit="dataset") as done:
        if engine == "ray" and left:
            _build_on_ray(left, out, processes, done.update)
        else:
            for job in left:
                job.builder.build(job.part, out, job.name, job.key)
                done.update()
    _write_mixture(out, parts, names, builder)
    return open_store(out, verify=False)


@dataclass(frozen=True, kw_only=True)
class _BuildJob:
    """A dataset that is to be built."""

    builder: "_Builder"
    part: Part
    name: str
    """Of its folder."""
    key: str


def _files_of(job: _BuildJob) -> dict[str, bytes]:
    """Build a dataset in a place of its own and return its files by their paths."""
    with tempfile.TemporaryDirectory() as place:
        job.builder.build(job.part, Path(place), job.name, job.key)
        folder = Path(place) / job.name
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _build_on_ray(jobs: Sequence[_BuildJob], out: Path, processes: int, tick: Callable[[], object]) -> None:
    """Let Ray build datasets; only this process writes into the store."""
    with ray_engine(processes) as engine:
        for outcome in engine.run(_files_of, jobs):
            files = outcome.value()
            with published(out / outcome.job.name, replace=True) as folder:
                for name, content in files.items():
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_bytes(content)
            tick()


def _check_references(config: MixtureConfig) -> None:
    """Raise `UserError` for a task to be collected whose filter needs a reference that there is not."""
    for entry in config.datasets:
        if entry.scheme == "task" and entry.expert_filter is not None:
            for task in matching(entry.location.split(",")):
                _random_return(task, entry.source)


def _random_return(task: str, where: str, stated: float | None = None) -> float:
    known = references().get(task)
    if known is not None:
        return known.random
    if stated is None:
        raise UserError(
            f"{where}: the expert filter needs the random policy's return of task {task!r}; measure it "
            "(gatito tasks --measure), import it with --random-return, or set expert_filter: null"
        )
    return stated


def _random_return_of(source: MinariSource) -> float:
    return _random_return(source.task, str(source.path), source.stated("ref_min_score"))


def _check_same_ids(out: Path, vocabulary: Vocabulary, text: TextTokenizer) -> None:
    """Raise `UserError` where `out` is no store, or one of other ids."""
    if not out.exists():
        return
    marks = ("dataset.json", f"{HELD_OUT}/dataset.json")
    kept = [path for path in out.iterdir() if path.is_dir() and any((path / mark).is_file() for mark in marks)]
    others = [path for path in out.iterdir() if path.name[0] != "." and path not in kept]
    if not is_store(out):
        if any(path.name != "tokenizer.model" for path in others):
            raise UserError(f"{out} exists and is no store; choose another --out or remove it")
        return
    try:
        before = read_mixture(out)
    except UserError as error:
        tqdm.write(f"{error}: it is written again")
        return
    if before["vocabulary"] != vocabulary.to_json() or before["text_sha256"] != text.sha256:
        raise UserError(f"{out} is a store of another vocabulary or text model; choose another --out")


def _write_mixture(out: Path, parts: Sequence[Part], names: Sequence[str], builder: "_Builder") -> None:
    config = builder.config
    trained = {name: part for part, name in zip(parts, names, strict=True) if not part.held_out}
    held_out = [f"{name}/{HELD_OUT}" for name in names if (out / name / HELD_OUT).is_dir()]
    datasets = {name: open_dataset(out / name, builder.vocabulary) for name in [*trained, *held_out]}
    layouts_of(datasets.values())
    tokens = [datasets[name].metadata["tokens"] for name in trained]
    shares = weights_of(list(trained.values()), tokens, config)
    write_mixture(
        out,
        builder.vocabulary,
        builder.text,
        dict(zip(trained, shares.tolist(), strict=True)),
        {"rule": asdict(config.held_out), "datasets": held_out},
    )


def _unused_name(name: str, names: Sequence[str]) -> str:
    """The name, numbered where another dataset has it."""
    numbered = (f"{name}-{k}" for k in itertools.count(2))
    return next(candidate for candidate in itertools.chain([name], numbered) if candidate not in names)


@dataclass(frozen=True)
class _Builder:
    """Builds the datasets of one mixture."""

    config: MixtureConfig
    vocabulary: Vocabulary
    text: TextTokenizer

    def build(self, part: Part, out: Path, name: str, key: str) -> None:
        """Build one dataset: what is trained on, and below it what is held out."""
        entry = self.config.datasets[part.entry]
        with published(out / name, replace=True) as folder:
            metadata = {"name": name, "source": part.source, "task": part.task, "key": key}
            scheme, _, location = part.source.partition(":")
            if scheme == "minari":
                self._control(_open(location, entry), entry, part, folder, metadata)
            else:
                write_documents(
                    part.source, folder, self.vocabulary, self.text, documents_of(entry, self.config), metadata
                )

    def _control(
        self, source: MinariSource, entry: DatasetConfig, part: Part, folder: Path, metadata: dict[str, Any]
    ) -> None:
        layout = open_layout(source, self.vocabulary, self.text)
        kept = _kept_episodes(source, entry)
        if entry.bins == "linear":
            trained = [i for i in kept if part.held_out or not self._holds_out(source, i)]
            layout = layout.binned_over(source.episode(i).observations for i in trained or kept)
        clipped = Clipped()
        with contextlib.ExitStack() as stack:
            writers = [
                stack.enter_context(StoreWriter(place, self.vocabulary)) for place in (folder, folder / HELD_OUT)
            ]
            for index in kept:
                episode = source.episode(index)
                where = f"{source.path}, episode {index}"
                _check_seed(episode.seed, where)
                sequence, more = checked_tokens(layout, episode, where=where, clip_actions=self.config.clip_actions)
                clipped += more
                held_out = part.held_out or self._holds_out(source, index)
                writers[held_out].write(sequence, episode.agent, episode.seed, episode.total_return)
            metadata |= {
                "kind": "control",
                "layout": layout.to_json(),
                "license": source.license,
                "filtered_episodes": len(_taken_episodes(source, entry)) - len(kept),
                "clipped_observations": clipped.observations,
                "clipped_actions": clipped.actions,
            }
            if not part.held_out:
                writers[0].close(metadata)
            if writers[1].num_episodes:
                writers[1].close(metadata)
        if part.held_out:
            for path in folder.glob("*.bin"):
                path.unlink()
        if not writers[1].num_episodes:
            shutil.rmtree(folder / HELD_OUT)

    def _holds_out(self, source: MinariSource, index: int) -> bool:
        """Whether an episode is held out, by its seed, or its index where it has none."""
        seed = source.metadata(index).get("seed")
        return self.config.held_out.has_episode(index if seed is None else seed)

    def key(self, part: Part) -> str:
        """Hash of all that decides what is built of a dataset."""
        scheme, _, location = part.source.partition(":")
        entry = self.config.datasets[part.entry]
        how: dict[str, Any]
        if scheme == "minari":
            threshold = entry.expert_filter
            files = _fingerprint(location)
            source = _open(location, entry)
            how = {
                "layout": open_layout(source, self.vocabulary, self.text).to_json(),
                "filter": None if threshold is None else [threshold, _random_return_of(source)],
                "held_out": [part.held_out, self.config.held_out.episodes, self.config.held_out.seeds],
                "clip": self.config.clip_actions,
            }
            if entry.scheme == "minari" and (entry.episodes, entry.first_episode) != (None, 0):
                how["taken"] = [entry.first_episode, entry.episodes]
            if entry.bins != "mu-law":
                how["bins"] = entry.bins
        else:
            files, how = documents_key(part.source, documents_of(entry, self.config))
        parts = {
            "schema": SCHEMA,
            "files": files,
            "control": how,
            "ids": [self.vocabulary.to_json(), self.text.sha256],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _open(location: str, entry: DatasetConfig) -> MinariSource:
    """The dataset as an entry wants it."""
    return replace(open_minari(location), previous_reward=entry.previous_reward)


def _check_seed(seed: int | None, where: str) -> None:
    if seed is not None and seed >= EVALUATION_SEEDS:
        raise UserError(
            f"{where}: its seed {seed} is kept for evaluation (from {EVALUATION_SEEDS} on); drop the episode"
        )


def _built(out: Path, vocabulary: Vocabulary) -> dict[str, str]:
    """The datasets of a store that are whole: key to folder. What is damaged is as if it were not there."""
    found = {}
    for folder in sorted(path.parent for path in out.glob("*/dataset.json")) + sorted(
        path.parent.parent for path in out.glob(f"*/{HELD_OUT}/dataset.json")
    ):
        try:
            places = [place for place in (folder, folder / HELD_OUT) if (place / "dataset.json").is_file()]
            for place in places:
                dataset = open_dataset(place, vocabulary)
                dataset.verify()
            found[str(dataset.metadata["key"])] = folder.name
        except (UserError, ValueError, KeyError, TypeError) as error:
            tqdm.write(f"{folder} is built again: {error}")
    return found


def _fingerprint(location: str) -> str:
    """Hash of the files of a Minari dataset."""
    folder = open_minari(location).path
    files = sorted(path for path in (folder / "data").rglob("*") if path.is_file())
    hashes = [f"{path.relative_to(folder)} {sha256_of(path)}" for path in files]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _taken_episodes(source: MinariSource, config: DatasetConfig) -> range:
    """Those that are asked for; raises `UserError` where there are fewer."""
    if config.scheme != "minari":  # what a task: source has collected, which may be more than is asked for now
        return range(len(source))
    stop = len(source) if config.episodes is None else config.first_episode + config.episodes
    if stop > len(source) or config.first_episode >= stop:
        raise UserError(
            f"{source.path}: episodes {config.first_episode} to {stop - 1} are asked for, it has {len(source)}; "
            "lower episodes or first_episode, or collect more"
        )
    return range(config.first_episode, stop)


def _kept_episodes(source: MinariSource, config: DatasetConfig) -> list[int]:
    taken = _taken_episodes(source, config)
    if config.expert_filter is None:
        return list(taken)
    random_return = _random_return_of(source)
    found = [(episode.total_return, episode.agent) for episode in map(source.episode, taken)]
    returns, agents = np.array([r for r, _ in found]), np.array([agent for _, agent in found])
    try:
        kept = np.flatnonzero(is_expert(returns, agents, random_return, config.expert_filter))
        return [taken[i] for i in kept.tolist()]
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None
