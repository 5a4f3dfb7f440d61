"""What a context begins with: nothing, or parts of demonstrations of the same task."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from gatito.data.alarm import time_limit
from gatito.data.checks import checked_tokens
from gatito.data.episode import Episode
from gatito.data.minari_episodes import MinariSource, episode_from_buffer, is_dataset, open_minari
from gatito.data.previous_reward import has_field, has_previous_reward
from gatito.data.recording import collect_episode
from gatito.data.sampler import goal_timesteps, prompt_budget, prompt_timesteps
from gatito.data.tasks import PROMPT_SEEDS, ExpertFailed, Reference, TaskSpec
from gatito.errors import UserError
from gatito.eval.scores import Prompt
from gatito.eval.simulators import LIMIT_S
from gatito.tokenizers import Layout, TokenSequence
from gatito.tokenizers.sequence import concatenate
from gatito.tokenizers.trunk import Trunk

EPISODE_LIMITS = 10
"""An expert's episode may take so many times as long as a timestep of a simulator."""
DEMONSTRATION_SCORE = 0.5
"""Smallest score of an episode that becomes a prompt."""
Demonstration = tuple[str, TokenSequence]
"""How it is named in errors, and its tokens."""


def prompt_of(
    demonstrations: Sequence[Demonstration], trunk: Trunk, context: int, part: Prompt, rng: np.random.Generator
) -> TokenSequence | None:
    """A prompt of whole timesteps of each demonstration, all of them within half the context, in equal shares.

    `part` says which: as many as fit from the first on, up to the last, or from one that is drawn. Raises `UserError`
    for a demonstration of which not one timestep fits its share.
    """
    if part == "none" or not demonstrations:
        return None
    budget = prompt_budget(context) // len(demonstrations)
    parts = []
    for name, sequence in demonstrations:
        starts = trunk.timestep_starts(sequence)
        first = {"beginning": 0, "end": goal_timesteps(starts, budget)}.get(part)
        if first is None:
            first = int(rng.integers(sequence.num_timesteps))
        last = sequence.num_timesteps if part == "end" else prompt_timesteps(starts, first, budget)
        if first >= last:
            t = min(first, sequence.num_timesteps - 1)
            raise UserError(
                f"{name}: timestep {t} takes {starts[t + 1] - starts[t]} positions, a prompt of "
                f"{len(demonstrations)} demonstrations may take {budget} of each (half the context of {context}); "
                "give fewer demonstrations, or train with a longer context"
            )
        parts.append(sequence.timesteps(first, last, trunk.vocabulary.patch))
    return concatenate(parts)


def prompt_of_episodes(
    episodes: Sequence[Episode],
    task: str,
    layout: Layout,
    trunk: Trunk,
    context: int,
    part: Prompt,
    rng: np.random.Generator,
) -> TokenSequence | None:
    """A prompt of demonstrations that are at hand, see `prompt_of`; raises `UserError` for one of another task."""
    named = []
    for episode in episodes:
        if episode.task != task:
            raise UserError(f"a demonstration of {episode.task!r} cannot prompt {task!r}; give one of {task!r}")
        where = f"demonstration {episode.id} of {task}"
        named.append((where, checked_tokens(layout, episode, where=where)[0]))
    return prompt_of(named, trunk, context, part, rng)


class Prompts:
    """The prompts of a task, out of seeded episodes of its expert or out of a dataset."""

    def __init__(
        self,
        spec: TaskSpec,
        layout: Layout,
        trunk: Trunk,
        context: int,
        *,
        known: Reference | None,
        count: int,
        each: int = 1,
        source: str | None = None,
        limit_s: float = LIMIT_S,
    ) -> None:
        """Take up to `count` demonstrations, `each` of them to a prompt; `source` is a folder, see `datasets_of`.

        Those of the expert are played in this process; one that takes ten times `limit_s` is passed over, and so are
        those that score below 0.5 where `known` tells. Raises `UserError` where there are too few, and for datasets
        of another task or layout.
        """
        if each < 1:
            raise UserError(f"--demonstrations is {each}, allowed 1 and more")
        self.trunk, self.context, self.each = trunk, context, each
        episodes = _of_expert(spec, count, limit_s) if source is None else _of_datasets(spec, layout, source)
        self.demonstrations: list[Demonstration] = []
        low = 0
        for name, episode in episodes:
            if known is not None and known.score(episode.total_return) < DEMONSTRATION_SCORE:
                low += 1
                continue
            self.demonstrations.append((name, checked_tokens(layout, episode, where=name)[0]))
            if len(self.demonstrations) == count:
                break
        wanted = count if source is None else each
        if len(self.demonstrations) < wanted:
            raise UserError(
                f"task {spec.id!r}: {len(self.demonstrations)} of {wanted} demonstrations"
                f"{f' in {source}' if source else ''}; {low} others score below {DEMONSTRATION_SCORE}"
            )

    def prompt(self, part: Prompt, number: int, seed: int) -> TokenSequence | None:
        """The prompt of context `number`; what is drawn follows from the seed."""
        N = len(self.demonstrations)
        chosen = [self.demonstrations[(number * self.each + j) % N] for j in range(self.each)]
        return prompt_of(chosen, self.trunk, self.context, part, np.random.default_rng([seed, 0x9E77]))


def _of_expert(spec: TaskSpec, count: int, limit_s: float) -> Iterator[tuple[str, Episode]]:
    """Seeded episodes that are neither trained nor evaluated on."""
    with closing(spec.make()) as env:
        for seed in range(PROMPT_SEEDS, PROMPT_SEEDS + 10 * count):
            try:
                with time_limit(EPISODE_LIMITS * limit_s, "wall", ExpertFailed(f"it took {EPISODE_LIMITS} limits")):
                    buffer = collect_episode(spec, env, seed)
            except ExpertFailed:
                continue
            yield f"the expert's episode of {spec.id}, seed {seed}", episode_from_buffer(buffer, spec.id, "expert")


def _of_datasets(spec: TaskSpec, layout: Layout, source: str) -> Iterator[tuple[str, Episode]]:
    for dataset in check_datasets(spec, layout, source):
        for episode in dataset.episodes():
            yield f"{dataset.path}, episode {episode.id}", episode


def datasets_of(task: str, source: str) -> list[MinariSource]:
    """The Minari datasets of a task: the one that `source` is, or all in its folder for the task.

    Raises `UserError` where there is none, and for one of another task.
    """
    location = source.removeprefix("minari:")
    below = sorted(path for path in (Path(location) / task).glob("*") if is_dataset(path))
    if not below and Path(location).is_dir() and not is_dataset(location):
        raise UserError(
            f"{location} has no demonstrations of {task!r}; gatito data collect --tasks {task} --out {location} "
            "collects some"
        )
    found = [open_minari(path) for path in below] or [open_minari(location)]
    for dataset in found:
        if dataset.task != task:
            raise UserError(
                f"{dataset.path} holds demonstrations of {dataset.task!r}, expected those of {task!r}; give a "
                "dataset of that task, or a folder with one for each task"
            )
    return found


def check_datasets(spec: TaskSpec, layout: Layout, source: str) -> list[MinariSource]:
    """The datasets of a task; raises `UserError` where there is none, and for one of another task or layout."""
    found = [_seen_as(dataset, layout) for dataset in datasets_of(spec.id, source)]
    for dataset in found:
        _check_layout(dataset, spec, layout)
    return found


def _seen_as(dataset: MinariSource, layout: Layout) -> MinariSource:
    """The dataset with the reward in its observations where the layout has it and its own have not."""
    wanted = has_previous_reward(layout) and not has_field(dataset.dataset.observation_space)
    return replace(dataset, previous_reward=wanted)


def _check_layout(dataset: MinariSource, spec: TaskSpec, layout: Layout) -> None:
    own = Layout.from_spaces(
        dataset.observation_space,
        dataset.action_space,
        vocabulary=layout.vocabulary,
        text=layout.text,
        overrides=spec.overrides,
    ).binned_as(layout)
    if own.sha256 != layout.sha256:
        raise UserError(
            f"{dataset.path}: its layout {own.sha256[:12]} is not {layout.sha256[:12]}, that of {spec.id!r}; "
            "demonstrations must have the spaces of the task that is played"
        )
