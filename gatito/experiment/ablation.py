"""The choices that decide the recipes' defaults, each in one table: the same steps with and without."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gatito.experiment.changes import DEFAULT, Change, Changed
from gatito.experiment.on_mixture import RecipeSettings

CHANGES = {
    DEFAULT: Change(choice="as it is", words="the recipe"),
    "no-prompts": Change(choice="prompts in training", words="none", train={"prompt_share": 0.0}),
    "no-rotary": Change(choice="rotary beside local positions", words="local alone", model={"rotary": False}),
    "linear-bins": Change(choice="mu-law bins", words="linear, scaled per field", data={"bins": "linear"}),
    "full-softmax": Change(choice="loss over legal ids", words="over the vocabulary", model={"loss_over": "full"}),
    "clean": Change(choice="executed noise in demonstrations", words="none", agent="expert"),
}
"""By name of the part."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings(RecipeSettings):
    """What is trained, and on what."""

    tasks: dict[str, int] = field(
        default_factory=lambda: {
            "classic/cartpole": 60,
            "box2d/lunar-lander": 200,
            "metaworld/door-unlock": 150,
            "metaworld/plate-slide": 150,
            "babyai/go-to-obj": 1500,
        }
    )
    """Task ids, each with the number of its demonstrations; all are trained on alike."""
    steps: int = 600
    """Optimizer steps of a run, whatever minutes the recipe says."""


FULL: Mapping[str, Any] = {"seeds": [0, 1, 2, 3], "steps": 10_000}
"""What the full protocol changes."""


@dataclass(frozen=True)
class Ablation(Changed):
    """One choice at a time, at equal steps; without a prompt and with one."""

    settings: AblationSettings
    name = "ablation"
    question = "Which choices of the recipes matter?"
    all_changes = CHANGES
    prompts = ("none", "beginning")

    @property
    def budget(self) -> str:
        """The steps of each run."""
        return f"{self.settings.steps} steps"
