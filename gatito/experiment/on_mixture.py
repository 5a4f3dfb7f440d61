"""What experiments on one mixture share: its tasks and demonstrations, recipes, and stores."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gatito.data.build import build
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.mixture import DatasetConfig, HeldOutConfig, MixtureConfig
from gatito.data.tasks import references
from gatito.errors import UserError
from gatito.eval.config import EvaluationConfig
from gatito.eval.prompts import datasets_of
from gatito.eval.references import baseline_of
from gatito.experiment.measuring import Evaluation, find_task
from gatito.experiment.plan import Experiment, Settings
from gatito.recipes import load_recipe
from gatito.train.configs import Recipe

HELD_OUT_SEED = 1 << 29
"""First seed of the episodes that the held-out loss is measured on."""
HELD_OUT_EPISODES = 30
"""Of each task, for the held-out loss."""


@dataclass(frozen=True, kw_only=True)
class MixtureSettings(Settings):
    """What is trained, and on what."""

    tasks: dict[str, int] = field(
        default_factory=lambda: {
            "classic/cartpole": 60,
            "classic/mountain-car": 150,
            "classic/acrobot": 150,
            "box2d/lunar-lander": 200,
            "metaworld/door-unlock": 150,
            "metaworld/handle-press-side": 150,
            "metaworld/plate-slide": 150,
            "babyai/go-to-obj": 1500,
        }
    )
    """Task ids, each with the number of its demonstrations; all are trained on alike."""
    steps: int = 1000
    """Optimizer steps of a run, whatever minutes the recipe says."""
    datasets: str = "experiments/datasets"
    """Folder that demonstrations are collected into, for all experiments."""
    demonstrations_from: str | None = None
    """Folder with Minari datasets of yours, one for each task in FOLDER/TASK/NAME; nothing is collected then, and
    prompts are taken from them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tasks:
            raise UserError("--tasks names none; give task ids with numbers of demonstrations")
        for task, count in self.tasks.items():
            if count < 1:
                raise UserError(f"--tasks: {count} demonstrations of {task}, allowed 1 and more")
        if self.steps < 1:
            raise UserError(f"--steps is {self.steps}, allowed 1 and more")


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(MixtureSettings):
    """What is trained by one recipe."""

    recipe: str = "demo"
    """Recipe of the package, or a YAML file: shape, batch, context and learning rate."""


class OnMixture(Experiment):
    """An experiment that trains on a mixture of tasks."""

    settings: MixtureSettings
    measures_loss = False
    """Whether losses on held-out episodes are measured."""

    @property
    def tasks(self) -> list[str]:
        """Those that are trained on."""
        return list(self.settings.tasks)

    def demonstrated_tasks(self) -> dict[str, int]:
        """All tasks that there have to be demonstrations of, with their largest number."""
        return self.settings.tasks

    def check(self) -> None:
        """Raise `UserError` for a task that is unknown or has no score, and for too few demonstrations of yours."""
        wanted, folder = self.demonstrated_tasks(), self.settings.demonstrations_from
        if folder is not None and not Path(folder).is_dir():
            raise UserError(
                f"--demonstrations-from {folder} is no folder; give one with a Minari dataset of each task, in "
                "FOLDER/TASK/NAME"
            )
        for task in wanted:
            spec = find_task(task)
            if folder is None and not spec.has_expert:
                raise UserError(
                    f"task {task!r} has no scripted expert to demonstrate; give demonstrations of yours by "
                    "--demonstrations-from"
                )
            if task not in references():
                baseline = baseline_of(spec, folder)
                if not baseline.is_scored:
                    raise UserError(
                        f"task {task!r} has no score: the random policy returns {baseline.random}, those who "
                        f"demonstrate {baseline.expert}; give better demonstrations"
                    )
        if folder is not None:
            self.demonstrations(wanted)
            if self.measures_loss:
                self.demonstrations(self._unseen, is_held_out=True)

    def made_of(self) -> dict[str, Any]:
        """The user's demonstrations."""
        folder = self.settings.demonstrations_from
        return {} if folder is None else {"demonstrations": _hashes(folder, self.demonstrated_tasks())}

    def prepare(self, out: Path) -> None:
        """Collect the demonstrations, and build the store that is trained on and, where losses are measured, the one
        of held-out episodes."""
        self.build(self.settings.tasks, self.store(out))
        if self.measures_loss:
            self.build(self._unseen, self.held_out(out), is_held_out=True)

    @property
    def _unseen(self) -> dict[str, int]:
        return dict.fromkeys(self.tasks, HELD_OUT_EPISODES)

    def store(self, out: Path) -> Path:
        """Of what is trained on."""
        return out / "store"

    def held_out(self, out: Path) -> Path:
        """Of episodes that are not."""
        return out / "held-out"

    def build(
        self,
        tasks: Mapping[str, int],
        store: Path,
        *,
        is_held_out: bool = False,
        agent: str = "noisy",
        held_out: Sequence[str] = (),
        **how: Any,
    ) -> None:
        """Build a store of tasks with numbers of demonstrations, mixed alike and not filtered.

        Tasks that are `held_out` are known to what is trained on it, but not trained on; `how` are further fields of
        each `DatasetConfig`.
        """
        found = self.demonstrations(tasks, is_held_out=is_held_out, agent=agent)
        entries = [
            DatasetConfig(
                source=f"minari:{path}", expert_filter=None, episodes=tasks[task], first_episode=first, **how
            )
            for task, (path, first) in found.items()
        ]
        rule = HeldOutConfig(tasks=[task for task in held_out if task in tasks])
        build(MixtureConfig(datasets=entries, held_out=rule), store)

    def demonstrations(
        self, tasks: Mapping[str, int], *, is_held_out: bool = False, agent: str = "noisy"
    ) -> dict[str, tuple[Path, int]]:
        """The dataset of each task that has so many demonstrations, and the first of them; those that are held out
        are others than those that are trained on.

        They are the user's own, or collected where they are missing. Raises `UserError` where the user has fewer.
        """
        folder = self.settings.demonstrations_from
        if folder is None:
            found = self._collected(tasks, HELD_OUT_SEED if is_held_out else 0, agent)
            return {task: (found[task], 0) for task in tasks}
        before = self.settings.tasks if is_held_out else {}
        return {task: _own(folder, task, count, before.get(task, 0)) for task, count in tasks.items()}

    def _collected(self, tasks: Mapping[str, int], first_seed: int, agent: str) -> dict[str, Path]:
        """Each number of demonstrations has a folder of its own; the first ones are the same in all of them."""
        found: dict[str, Path] = {}
        for count in sorted(set(tasks.values())):
            own = [task for task in tasks if tasks[task] == count]
            folder = Path(self.settings.datasets) / f"{count}-from-{first_seed}"
            how = CollectConfig(
                episodes=count, agents={agent: 1.0}, first_seed=first_seed, processes=os.cpu_count() or 1
            )
            found |= zip(own, collect(own, folder, how), strict=True)
        return found

    def budgeted(
        self,
        name: str,
        seed: int,
        steps: int | None = None,
        *,
        model: Mapping[str, Any] | None = None,
        train: Mapping[str, Any] | None = None,
    ) -> Recipe:
        """A recipe, by its name or file, of a training seed and so many steps, by default those of the settings;
        `model` and `train` change its sections."""
        loaded = load_recipe(name)
        count = steps or self.settings.steps
        budget = {"seed": seed, "steps": count, "minutes": None, "warmup": min(loaded.train.warmup, count // 5)}
        return Recipe(
            model=dataclasses.replace(loaded.model, **(model or {})),
            train=dataclasses.replace(loaded.train, **budget | dict(train or {})),
        )

    def evaluation(self, tasks: Iterable[str] | None = None, **how: Any) -> Evaluation:
        """Seeded episodes of tasks, by default of all."""
        name = how.pop("name", "eval")
        shown = how.pop("shown", {})
        own = self.settings.demonstrations_from
        config = EvaluationConfig(episodes=self.settings.episodes, demonstrations_from=own, **how)
        chosen: Sequence[str] = self.tasks if tasks is None else list(tasks)
        return Evaluation(tasks=chosen, how=config, name=name, shown=shown)


class OnRecipe(OnMixture):
    """An experiment whose runs are all of one recipe."""

    settings: RecipeSettings

    def made_of(self) -> dict[str, Any]:
        """The recipe, whatever its file is called, and the user's demonstrations."""
        return {"recipe": asdict(load_recipe(self.settings.recipe)), **super().made_of()}

    def recipe(self, seed: int, steps: int | None = None, **changes: Any) -> Recipe:
        """The recipe of a training seed and so many steps; `changes` are those of `budgeted`."""
        return self.budgeted(self.settings.recipe, seed, steps, **changes)


def _hashes(folder: str, tasks: Iterable[str]) -> dict[str, list[str]]:
    """Of the datasets of each task: of the names, sizes and times of their files."""
    return {task: [_hash(dataset.path) for dataset in datasets_of(task, folder)] for task in tasks}


def _hash(dataset: Path) -> str:
    files = sorted(path for path in dataset.rglob("*") if path.is_file())
    said = [(str(path.relative_to(dataset)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _own(folder: str, task: str, count: int, first: int) -> tuple[Path, int]:
    """The user's dataset of a task, and the first of so many episodes; raises `UserError` where it has fewer."""
    datasets = datasets_of(task, folder)
    if len(datasets) > 1:
        named = ", ".join(str(dataset.path) for dataset in datasets)
        raise UserError(f"--demonstrations-from {folder} has several datasets of {task!r}: {named}; leave one there")
    if first + count > len(datasets[0]):
        why = f"{count}, after the {first} that are trained on" if first else str(count)
        raise UserError(
            f"{datasets[0].path}: {len(datasets[0])} demonstrations of {task!r}, asked for {why}; ask for fewer, or "
            "give more"
        )
    return datasets[0].path, first
