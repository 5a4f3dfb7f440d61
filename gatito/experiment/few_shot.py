"""A task held out of pretraining, learned from few demonstrations: fine-tuning against training from scratch
(Reed et al. 2022, section 5.2 and figure 9)."""

import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gatito.data.store import open_store
from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint, weights_sha256
from gatito.eval.wording import counted
from gatito.experiment.estimates import Estimate, mean_over, mean_score
from gatito.experiment.measuring import check_held_out, played, tasks_trained_on, trained
from gatito.experiment.on_mixture import OnRecipe, RecipeSettings
from gatito.experiment.plan import Measured, Part, Summary, Table, named
from gatito.tokenizers import Layout
from gatito.train.configs import LoraConfig, Recipe
from gatito.train.init import Beginning

PRETRAINED, ADAPTED, SCRATCH = "fine-tuned", "adapters", "from scratch"
UNSEEN = "as pretrained"
PRETRAINING = "pretraining"
QUARTER = 4
"""Training from scratch has so many times the demonstrations of what it is compared with."""
PRETRAINED_ON = {
    "classic/cartpole": 60,
    "box2d/lunar-lander": 200,
    "metaworld/button-press-topdown": 100,
    "metaworld/button-press-topdown-wall": 100,
    "metaworld/coffee-button": 100,
    "metaworld/door-close": 100,
    "metaworld/door-unlock": 100,
    "metaworld/drawer-close": 100,
    "metaworld/drawer-open": 100,
    "metaworld/faucet-close": 100,
    "metaworld/handle-press": 100,
    "metaworld/handle-press-side": 100,
    "metaworld/plate-slide": 100,
    "metaworld/window-open": 100,
    "babyai/go-to-obj": 1000,
    "babyai/go-to-red-ball-no-dists": 1000,
    "babyai/go-to-local-s5n2": 1000,
    "babyai/go-to-local-s6n4": 1000,
    "babyai/go-to-red-blue-ball": 1000,
    "babyai/pickup-loc": 1000,
}
"""Pretrained on by default: many tasks of a few kinds, so that what is held out is of a kind that is known."""
STEPS, FULL_STEPS = 3000, 20_000
"""Of pretraining."""
PRETRAINING_EPISODES = 10
"""Of each task that is pretrained on, at most: only their mean is asked for."""


@dataclass(frozen=True, kw_only=True)
class FewShotSettings(RecipeSettings):
    """What is pretrained on, what is held out, and how many demonstrations there are."""

    tasks: dict[str, int] = field(default_factory=lambda: dict(PRETRAINED_ON))
    """Task ids that are pretrained on, each with the number of its demonstrations; all are trained on alike."""
    held_out: list[str] = field(
        default_factory=lambda: [
            "metaworld/faucet-open",
            "babyai/go-to-red-ball-grey",
            "babyai/go-to-local-s8n4",
        ]
    )
    """Task ids, none of them pretrained on."""
    demonstrations: list[int] = field(default_factory=lambda: [1, 4, 16, 64])
    """Numbers of demonstrations, the fewest first; the first ones are the same in all of them."""
    init: str | None = None
    """Pretrained checkpoint or run, in place of one that is pretrained on `tasks` for `steps`."""
    steps: int = STEPS
    """Optimizer steps of pretraining."""
    tuning_steps: int = 100
    """Optimizer steps of fine-tuning on the demonstrations: more of them forget what was learned before."""
    tuning_lr: float | None = None
    """Peak learning rate of fine-tuning all weights; by default half of the recipe's."""
    scratch_steps: int = 300
    """Optimizer steps of training from scratch on the demonstrations."""
    lora_rank: int = 8
    """Rank of adapters (LoRA) that are fine-tuned as a third way; 0 leaves it out."""
    lora_lr: float | None = None
    """Peak learning rate of adapters; by default the recipe's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.held_out or len(set(self.held_out)) < len(self.held_out):
            raise UserError(
                f"--held-out is {self.held_out}, allowed different tasks that are not in --tasks, at least one"
            )
        if self.init is not None and (self.tasks != PRETRAINED_ON or self.steps not in (STEPS, FULL_STEPS)):
            raise UserError(
                f"--tasks and --steps are of pretraining, which --init {self.init} has behind it: drop them"
            )
        counts = self.demonstrations
        if not counts or counts != sorted(set(counts)) or counts[0] < 1:
            raise UserError(f"--demonstrations is {counts}, allowed different numbers from 1, the smallest first")
        if self.lora_rank < 0:
            raise UserError(f"--lora-rank is {self.lora_rank}, allowed 0 (no adapters) and more")
        for name in ("tuning_steps", "scratch_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, allowed 1 and more")
        for name in ("tuning_lr", "lora_lr"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} is {value}, allowed above 0")
        if self.lora_lr is not None and not self.lora_rank:
            raise UserError(f"--lora-lr {self.lora_lr} without adapters: leave it out, or give --lora-rank")


FULL: Mapping[str, Any] = {
    "demonstrations": [1, 4, 16, 64, 256, 1024],
    "seeds": [0, 1, 2, 3],
    "steps": FULL_STEPS,
    "scratch_steps": 2000,
}
"""What the full protocol changes."""


@dataclass(frozen=True)
class FewShot(OnRecipe):
    """Fine-tuning against training from scratch."""

    settings: FewShotSettings
    name = "few-shot"
    question = "Does a pretrained agent need fewer demonstrations of a new task?"

    def demonstrated_tasks(self) -> dict[str, int]:
        """What is pretrained on, and what is held out."""
        pretrained_on = self.settings.tasks if self.settings.init is None else {}
        return {**pretrained_on, **dict.fromkeys(self.settings.held_out, self.settings.demonstrations[-1])}

    def check(self) -> None:
        """Raise `UserError` also for a held-out task that is pretrained on."""
        if self.settings.init is None:
            check_held_out(self.settings.held_out, self.tasks, "--tasks")
        else:
            check_held_out(self.settings.held_out, tasks_trained_on(self.settings.init), self.settings.init)
        super().check()
        if self.settings.lora_rank and importlib.util.find_spec("peft") is None:
            raise UserError("--lora-rank needs peft: pip install 'gatito[lora]'")
        width = self._recipe(self.settings.seeds[0], self.settings.tuning_steps).model.width
        if self.settings.lora_rank > width:
            raise UserError(
                f"--lora-rank is {self.settings.lora_rank}, allowed up to the width of the network {width}"
            )

    def made_of(self) -> dict[str, Any]:
        """The recipe, and the weights that are fine-tuned."""
        init = self.settings.init
        return super().made_of() | ({} if init is None else {"weights": weights_sha256(load_checkpoint(init)[0])})

    def prepare(self, out: Path) -> None:
        """Collect and build the mixture, and a store for each number of demonstrations of each held-out task."""
        if self.settings.init is None:
            super().prepare(out)
        for count in self.settings.demonstrations:
            self.demonstrations(dict.fromkeys(self.settings.held_out, count))  # all tasks at the same time
            for task in self.settings.held_out:
                self.build({task: count}, self.demonstrated(out, task, count))

    @property
    def _ways(self) -> tuple[str, ...]:
        return (PRETRAINED, *([ADAPTED] if self.settings.lora_rank else []), SCRATCH)

    def demonstrated(self, out: Path, task: str, count: int) -> Path:
        """Store of so many demonstrations of a task."""
        return out / "demonstrations" / named(task, count)

    def parts(self, out: Path) -> list[Part]:
        """Pretraining, and one for each task, number, way and seed."""
        parts = []
        if self.settings.init is None:
            parts.append(Part(name=PRETRAINING, facts={"way": PRETRAINING}, measure=partial(self._pretrain, out)))
        needed = (PRETRAINING,) if self.settings.init is None else ()
        for task in self.settings.held_out:
            facts: dict[str, Any] = {"task": task, "demonstrations": 0, "way": UNSEEN}
            unseen = partial(self._play_unseen, out, task)
            parts.append(Part(name=named(task, "unseen"), facts=facts, measure=unseen, needs=needed))
            for count in self.settings.demonstrations:
                for way in self._ways:
                    for seed in self.settings.seeds:
                        name = named(task, count, way, seed)
                        facts = {"task": task, "demonstrations": count, "way": way, "seed": seed}
                        measure = partial(self._tune, out, task, count, way, seed)
                        needs = () if way == SCRATCH else needed
                        parts.append(Part(name=name, facts=facts, measure=measure, needs=needs))
        return parts

    def _pretrain(self, out: Path, folder: Path) -> dict[str, Any]:
        played = self.evaluation()
        how = dataclasses.replace(played.how, episodes=min(PRETRAINING_EPISODES, played.how.episodes))
        recipe = self.recipe(self.settings.seeds[0])
        return trained(folder, recipe, self.store(out), [dataclasses.replace(played, how=how)])

    def _recipe(self, seed: int, steps: int) -> Recipe:
        """Of the shape of what is fine-tuned, from scratch too."""
        recipe = self.recipe(seed, steps)
        if self.settings.init is None:
            return recipe
        model, processor = load_checkpoint(self.settings.init)
        return Beginning(model=model, processor=processor).recipe(recipe)

    def _init(self, out: Path) -> Path:
        given = Path(self.settings.init or out / "parts" / PRETRAINING / "run")
        return given.resolve() if given.exists() else given  # one on the hub is named as it is

    def _play_unseen(self, out: Path, task: str, folder: Path) -> dict[str, Any]:
        """The pretrained checkpoint, told of the task no more than its spaces."""
        model, processor = load_checkpoint(self._init(out))
        store = open_store(self.demonstrated(out, task, self.settings.demonstrations[0]))
        processor.layouts |= {task: Layout.from_json(store.layouts()[task], processor.text)}
        played(model, processor, self.evaluation([task]), folder)
        return {}

    def _tune(self, out: Path, task: str, count: int, way: str, seed: int, folder: Path) -> dict[str, Any]:
        init = None
        if way == SCRATCH:
            recipe = self._recipe(seed, self.settings.scratch_steps)
        else:
            recipe = self._recipe(seed, self.settings.tuning_steps)
            init = self._init(out)
            plain = recipe.train.lr
            if way == ADAPTED:
                lr, rank = self.settings.lora_lr or plain, self.settings.lora_rank
            else:
                lr, rank = self.settings.tuning_lr or plain / 2, 0
            tuned = dataclasses.replace(recipe.train, lr=lr)
            recipe = dataclasses.replace(recipe, train=tuned, lora=LoraConfig(rank=rank))
        store = self.demonstrated(out, task, count)
        return trained(folder, recipe, store, [self.evaluation([task])], init=init)

    def _scores(self, measured: Sequence[Measured]) -> dict[tuple[str, str, int], Estimate]:
        """By task, way and number of demonstrations."""
        return {
            (task, way, count): mean_score(
                [m.results() for m in measured if _is(m, task=task, way=way, demonstrations=count)]
            )
            for task in self.settings.held_out
            for way in self._ways
            for count in self.settings.demonstrations
        }

    def _of_unseen(self, measured: Sequence[Measured]) -> dict[str, Estimate]:
        """By task, the score of the pretrained checkpoint."""
        return {
            task: mean_score([m.results() for m in measured if _is(m, task=task, way=UNSEEN)])
            for task in self.settings.held_out
        }

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Scores by number of demonstrations, and where fine-tuning reaches with a quarter of them what training from
        scratch reaches."""
        scores, unseen, counts = self._scores(measured), self._of_unseen(measured), self.settings.demonstrations
        rows = [
            [
                task,
                way,
                "" if way == SCRATCH else unseen[task].words(),
                *(scores[task, way, c].words() for c in counts),
            ]
            for task in self.settings.held_out
            for way in self._ways
        ]
        head = ["held-out task", "way", UNSEEN, *(counted(count, "demonstration") for count in counts)]
        steps = f"{self.settings.tuning_steps} steps of fine-tuning, {self.settings.scratch_steps} from scratch"
        title = f"score after {steps}"
        quarters = {
            (task, way): self._quarters(task, way, scores)
            for task in self.settings.held_out
            for way in self._ways[:-1]
        }
        findings = [
            finding
            for task in self.settings.held_out
            for finding in self._findings(task, scores, unseen[task], quarters)
        ]
        findings.append("all fine-tuning began with one checkpoint: how pretrainings differ is in no interval")
        values = {}
        if learned := [m.results() for m in measured if _is(m, way=PRETRAINING)]:
            score = mean_score(learned)
            findings.append(f"pretraining: {score.words()} on its {counted(len(self.settings.tasks), 'task')}")
            values[PRETRAINING] = score.to_json()
        values |= {f"{task}, {way}, {count}": estimate.to_json() for (task, way, count), estimate in scores.items()}
        values |= {f"{task}, {UNSEEN}": estimate.to_json() for task, estimate in unseen.items()}
        values |= {
            f"{task}, {way}, a quarter": mean_over(list(own.values())).to_json()
            for (task, way), own in quarters.items()
            if own
        }
        table, draw = Table(title=title, head=head, rows=rows), partial(self._draw, scores, unseen)
        return Summary(tables=[table], findings=findings, values=values, draw=draw)

    def _quarters(self, task: str, way: str, scores: Mapping[tuple[str, str, int], Estimate]) -> dict[str, Estimate]:
        """What a way with a quarter of the demonstrations, or less, is above training from scratch."""
        counts = self.settings.demonstrations
        pairs = [(few, next((more for more in counts if more >= QUARTER * few), None)) for few in counts]
        return {
            f"{few} against {more}": scores[task, way, few].minus(scores[task, SCRATCH, more])
            for few, more in pairs
            if more is not None
        }

    def _findings(
        self,
        task: str,
        scores: Mapping[tuple[str, str, int], Estimate],
        unseen: Estimate,
        quarters: Mapping[tuple[str, str], Mapping[str, Estimate]],
    ) -> list[str]:
        """Of one task: without demonstrations, with equal ones, and with a quarter of them."""
        counts = self.settings.demonstrations
        most = scores[task, SCRATCH, counts[-1]]
        found = [f"{task}: {UNSEEN}, with no demonstration: {unseen.words()}"]
        for way, other in ((PRETRAINED, SCRATCH), (ADAPTED, PRETRAINED)):
            if way in self._ways:
                gains = [scores[task, way, count].minus(scores[task, other, count]).words() for count in counts]
                listed = ", ".join(f"{gain} with {count}" for gain, count in zip(gains, counts, strict=True))
                found.append(f"{task}: {way} against {other}: {listed}")
        if not most.interval[0] > 0:
            found.append(f"{task}: from scratch nothing is learned, which is reached without learning anything")
        found.append(
            f"{task}: with no demonstration against from scratch with {counts[-1]}: {unseen.minus(most).words()}"
        )
        for way in self._ways[:-1]:
            if own := quarters[task, way]:
                mean = mean_over(list(own.values()))
                listed = ", ".join(f"{difference.mean:.2f} with {numbers}" for numbers, difference in own.items())
                found.append(
                    f"{task}: {way} with a quarter or less of the demonstrations of training from scratch: "
                    f"{mean.words()} ({listed}), {mean.reaches(0.0)}"
                )
            else:
                found.append(f"{task}: {way}: no two of {counts} demonstrations are a quarter of each other, or less")
        return found

    def _draw(
        self, scores: Mapping[tuple[str, str, int], Estimate], unseen: Mapping[str, Estimate], path: Path
    ) -> None:
        """A panel for each held-out task."""
        from gatito.experiment.pictures import level, lines, panels, save

        figure, axes = panels(len(self.settings.held_out))
        for task, own in zip(self.settings.held_out, axes, strict=True):
            series = {
                way: [(float(count), scores[task, way, count]) for count in self.settings.demonstrations]
                for way in self._ways
            }
            level(own, unseen[task], UNSEEN)
            lines(own, series, xscale="log", xlabel="demonstrations", ylabel="score", title=task)
            own.minorticks_off()
            own.set_xticks(self.settings.demonstrations, [str(count) for count in self.settings.demonstrations])
        save(figure, f"{self.question} {counted(len(self.settings.seeds), 'seed')}", path)


def _is(measured: Measured, **facts: Any) -> bool:
    return all(measured.facts.get(key) == value for key, value in facts.items())
