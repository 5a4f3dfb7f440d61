"""The registry of control tasks: environment, scripted expert, reference returns.

A package of yours adds tasks through the entry point group `gatito.tasks`: the entry point is a function
without arguments that returns a list of `TaskSpec`. Files never name code; only installed packages do.
"""

import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points, metadata
from importlib.resources import files
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError, nearest
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary

Score = TypeVar("Score", float, NDArray[np.float64])
"""One return, or an array of them."""

Policy = Callable[[Any], Any]
"""Maps one observation to one action; asked once per timestep, in order."""

EVALUATION_SEEDS = 1 << 30
"""Episode seeds below are for collecting, from here on for references, prompts and evaluation."""

PROMPT_SEEDS = EVALUATION_SEEDS + (1 << 29)
"""Seeds of the demonstrations that an expert gives as prompts at evaluation."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Mean return of the random policy and of the scripted expert over seeded episodes."""

    random: float
    expert: float
    episodes: int = 100
    """Of each; entries measured before this was recorded were measured over 100."""

    def __post_init__(self) -> None:
        if not self.expert > self.random:
            raise UserError(f"the expert's return {self.expert} is not above the random policy's {self.random}")

    def score(self, episode_return: Score) -> Score:
        """Normalise returns: 0 is the random policy, 1 the expert (Reed et al. 2022, section 4)."""
        return (episode_return - self.random) / (self.expert - self.random)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One control task."""

    id: str
    """`domain/name` in lower case, as the user types it and as folders are named."""
    make: Callable[..., gym.Env[Any, Any]]
    """Builds the environment; takes `render_mode`. Its spaces are serializable."""
    expert: Callable[[gym.Env[Any, Any]], Policy]
    """Builds the expert for an environment that has just been reset; asked anew each episode."""
    noise: float = 0.0
    """Share of random actions executed while collecting; the expert's action stays the label."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Modules that must be importable, each with what installs it: an extra of gatito, or another package."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Field path to field kind, where the space alone would be read differently."""
    success: bool = False
    """Whether the return is a success (0 or 1)."""
    reference: Reference | None = None
    """Measured references of a task outside this package; ours are in `references.json`."""
    returns_of: str | None = None
    """Task with the same dynamics, seeds and expert, which differs in what is observed: its references are ours."""
    cpu_limit_s: float | None = None
    """CPU time of one episode with its expert, after which it is left out: some experts can loop for ever."""
    license: str = "MIT"
    """Of the simulator and what it shows, as an SPDX expression; datasets of the task name it."""

    @property
    def domain(self) -> str:
        """The part of the id before the slash."""
        return domain_of(self.id)

    @property
    def has_expert(self) -> bool:
        """Whether it has a policy of its own, or one that the user named."""
        return self.expert is not no_expert

    def layout(self, env: gym.Env[Any, Any], vocabulary: Vocabulary, text: TextTokenizer) -> Layout:
        """The layout of an environment of this task."""
        return Layout.from_spaces(
            env.observation_space, env.action_space, vocabulary=vocabulary, text=text, overrides=self.overrides
        )

    def missing_extra(self) -> str | None:
        """Return the sentence that tells what to install, or None where all is there."""
        for module, extra in self.modules.items():
            if importlib.util.find_spec(module) is None:
                ours = metadata("gatito").get_all("Provides-Extra") or []
                package = f"gatito[{extra}]" if extra in ours else extra
                return f"task {self.id!r} needs {module}: pip install '{package}'"
        return None


def no_expert(env: gym.Env[Any, Any]) -> Policy:
    """Stands for the expert of a task that has none; raises `UserError`."""
    raise UserError(f"{env} has no scripted expert")


def domain_of(task: str) -> str:
    """Return the first part of a task id; of what is no control task the kind of source, such as `text`."""
    return task.split("/")[0].partition(":")[0]


class ExpertFailed(RuntimeError):
    """The expert gave up on an episode or thought too long; the collector leaves the episode out."""


@cache
def registry() -> dict[str, TaskSpec]:
    """Return every known task by id: our own first, then those of installed packages."""
    from gatito.data.domains import atari, babyai, classic, dmc, metaworld, mujoco, sokoban

    domains = (classic, mujoco, dmc, babyai, metaworld, sokoban, atari)
    tasks = {spec.id: spec for domain in domains for spec in domain.tasks()}
    for entry in entry_points(group="gatito.tasks"):
        try:
            tasks |= _checked(entry.load()(), tasks)
        except Exception as error:  # another package's code; the tasks of all others stay usable
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"no tasks from {entry.value!r} (entry point {entry.name!r}): {reason}", stacklevel=2)
    return tasks


@cache
def groups() -> dict[str, list[str]]:
    """Return the named lists of tasks, such as both sides of Meta-World's ML45."""
    from gatito.data.domains import babyai, metaworld

    return babyai.groups() | metaworld.groups()


def twins(task: str) -> list[str]:
    """Return the tasks of the same dynamics, seeds and expert, which differ in what is observed; the task first."""
    first = _source_of_returns(task)
    return [task, *(other for other in registry() if other != task and _source_of_returns(other) == first)]


def _source_of_returns(task: str) -> str:
    spec = registry().get(task)
    return spec.returns_of or task if spec else task


def matching(names: Iterable[str]) -> list[str]:
    """Return the ids that task ids, groups and patterns such as `babyai/*` name, each once, in this order.

    `!` before a name takes away what it names. Raises `UserError` for a name or pattern that no task has.
    """
    found: dict[str, None] = {}
    for name in names:
        wanted = name.removeprefix("!")
        ids = groups().get(wanted) or [task for task in registry() if wanted == "all" or fnmatchcase(task, wanted)]
        if not ids:
            raise UserError(nearest(wanted, [*registry(), *groups(), "all"], "task"))
        if name.startswith("!"):
            found = {task: None for task in found if task not in ids}
        else:
            found |= dict.fromkeys(ids)
    return list(found)


def _checked(specs: list[TaskSpec], known: Mapping[str, TaskSpec]) -> dict[str, TaskSpec]:
    """The tasks of a package by id; raises `UserError` for an id that is no folder or is taken."""
    tasks: dict[str, TaskSpec] = {}
    for spec in specs:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]*/[a-z0-9][a-z0-9_.-]*", spec.id):
            raise UserError(f"task id {spec.id!r}: allowed is domain/name, each of a-z, 0-9, '-', '_' and '.'")
        if spec.id in known or spec.id in tasks:
            raise UserError(f"task {spec.id!r} is registered twice; rename one of them")
        tasks[spec.id] = spec
    return tasks


def get_task(task_id: str) -> TaskSpec:
    """Return the task, or raise `UserError` with the nearest name or the missing extra."""
    tasks = registry()
    if task_id not in tasks:
        raise UserError(nearest(task_id, tasks, "task"))
    missing = tasks[task_id].missing_extra()
    if missing:
        raise UserError(missing)
    return tasks[task_id]


@cache
def references() -> dict[str, Reference]:
    """Return the measured references by task id (`gatito tasks --measure all --out FILE` measures them)."""
    text = files("gatito.data").joinpath("references.json").read_text()
    known = {task: Reference(**values) for task, values in json.loads(text)["tasks"].items()}
    known |= {spec.id: spec.reference for spec in registry().values() if spec.reference is not None}
    shared = {spec.id: known[spec.returns_of] for spec in registry().values() if spec.returns_of in known}
    return shared | known


def reference(task_id: str) -> Reference:
    """Return the references of one task, or raise `UserError` where none was measured."""
    known = references()
    if task_id not in known:
        raise UserError(
            f"task {task_id!r} has no reference returns; measure them: "
            f"gatito tasks --measure {task_id}, then write them into its TaskSpec(reference=...)"
        )
    return known[task_id]
