"""The choices that decide the recipes' defaults, each in one table: the same steps with and without."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gatito.experiment.estimates import Estimate, mean_of, mean_score
from gatito.experiment.lessons import Lessons, OnLessons
from gatito.experiment.measuring import trained
from gatito.experiment.plan import Measured, Part, Summary, Table

DEFAULT = "as it is"
UNPROMPTED, PROMPTED = "none", "beginning"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A recipe or data that differs in one choice."""

    choice: str
    """What is chosen."""
    words: str
    """How it differs from the default."""
    model: Mapping[str, Any] | None = None
    """Changes of the recipe's model."""
    train: Mapping[str, Any] | None = None
    """Changes of its training."""
    agent: str = "noisy"
    """Who demonstrates."""


CHANGES = {
    "default": Change(choice=DEFAULT, words="the recipe"),
    "no-prompts": Change(choice="prompts in training", words="none", train={"prompt_share": 0.0}),
    "no-rotary": Change(choice="rotary beside local positions", words="local alone", model={"rotary": False}),
    "full-softmax": Change(choice="loss over legal ids", words="over the vocabulary", model={"loss_over": "full"}),
    "clean": Change(choice="executed noise in demonstrations", words="none", agent="expert"),
}
"""By name of the part."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings(Lessons):
    """What is trained, and on what."""


FULL: Mapping[str, Any] = {"seeds": [0, 1, 2, 3], "steps": 10_000}
"""What the full protocol changes."""


@dataclass(frozen=True)
class Ablation(OnLessons):
    """One choice at a time."""

    settings: AblationSettings
    name = "ablation"
    question = "Which choices of the recipes matter?"

    def prepare(self, out: Path) -> None:
        """Collect and build, with executed noise and without."""
        super().prepare(out)
        self.build(self.settings.tasks, self.store_of("expert", out), agent="expert")

    def store_of(self, agent: str, out: Path) -> Path:
        """Store of demonstrations by an agent."""
        return self.store(out) if agent == "noisy" else out / f"store-{agent}"

    def parts(self, out: Path) -> list[Part]:
        """One for each change and seed."""
        return [
            Part(
                name=f"{name}-{seed}",
                facts={"change": name, "choice": change.choice, "words": change.words, "seed": seed},
                measure=partial(self._measure, out, change, seed),
            )
            for name, change in CHANGES.items()
            for seed in self.settings.seeds
        ]

    def _measure(self, out: Path, change: Change, seed: int, folder: Path) -> dict[str, Any]:
        recipe = self.recipe(seed, model=change.model, train=change.train)
        evaluation = self.evaluation(prompt=f"{UNPROMPTED},{PROMPTED}")
        store, held_out = self.store_of(change.agent, out), self.held_out(out)
        return trained(folder, recipe, store, [evaluation], held_out=held_out)

    def summary(self, measured: Sequence[Measured]) -> Summary:
        """Scores of each change, and how they differ from the default's."""
        scores = self._scores(measured)
        rows, findings, values = [], [], {}
        for name, change in CHANGES.items():
            own = [m for m in measured if m.facts["change"] == name]
            loss = mean_of([m.values["held_out_loss"]["all"] for m in own])
            less = {
                prompt: scores[name, prompt].minus(scores["default", prompt]) for prompt in (UNPROMPTED, PROMPTED)
            }
            rows.append(
                [change.choice, change.words, *(scores[name, p].words() for p in (UNPROMPTED, PROMPTED)),
                 less[UNPROMPTED].words() if name != "default" else "", loss.words(3)]
            )  # fmt: skip
            values[name] = {p: scores[name, p].to_json() for p in (UNPROMPTED, PROMPTED)} | {"loss": loss.to_json()}
            if name != "default":
                findings.append(f"{change.choice}, {change.words}: {_verdict(less[UNPROMPTED])}")
        head = ["choice", "instead", "score, no prompt", "score, prompted", "difference, no prompt", "held-out loss"]
        title = f"{self.settings.steps} steps, {len(self.tasks)} tasks"
        return Summary(tables=[Table(title=title, head=head, rows=rows)], findings=findings, values=values)

    def _scores(self, measured: Sequence[Measured]) -> dict[tuple[str, str], Estimate]:
        return {
            (name, prompt): mean_score([m.results() for m in measured if m.facts["change"] == name], prompt=prompt)
            for name in CHANGES
            for prompt in (UNPROMPTED, PROMPTED)
        }

    def draw(self, measured: Sequence[Measured], summary: Summary, path: Path) -> None:
        """Scores without and with a prompt."""
        from gatito.experiment.pictures import bars, panels, save

        scores = self._scores(measured)
        figure, axes = panels(2)
        for prompt, own in zip((UNPROMPTED, PROMPTED), axes, strict=True):
            named = {f"{c.choice}: {c.words}": scores[name, prompt] for name, c in CHANGES.items()}
            bars(own, named, xlabel="mean score", title=f"prompt: {prompt}")
        axes[1].set_yticklabels([])
        save(figure, f"{self.question} {self.settings.steps} steps, {len(self.settings.seeds)} seeds", path)


def _verdict(less: Estimate) -> str:
    """How sure a difference from the default is."""
    low, high = less.interval
    if low > 0:
        return f"better, {less.words()}"
    return f"worse, {less.words()}" if high < 0 else f"undecided, {less.words()}"
