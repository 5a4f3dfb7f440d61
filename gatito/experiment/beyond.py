"""Ideas beyond the paper, at equal minutes on one mixture; only those whose interval says so are kept."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatito.errors import UserError
from gatito.experiment.changes import DEFAULT, Change, Changed
from gatito.experiment.on_mixture import RecipeSettings
from gatito.experiment.plan import PLACES
from gatito.train.configs import Recipe

PAPER = {"optimizer": "adamw", "average": 0.0, "final_lr": 0.1}
"""What each idea is compared with, whichever of them a recipe has taken up since."""
CHANGES = {
    DEFAULT: Change(choice="as in the paper", words="nothing"),
    "muon": Change(choice="AdamW", words="Muon for the matrices", train={"optimizer": "muon"}),
    "muon-fast": Change(
        choice="AdamW", words="Muon at twice the learning rate", train={"optimizer": "muon"}, lr_times=2.0
    ),
    "muon-average": Change(
        choice="AdamW", words="Muon, and the running average", train={"optimizer": "muon", "average": 0.995}
    ),
    "average": Change(choice="last weights", words="their running average", train={"average": 0.995}),
    "spread": Change(choice="one bin as target", words="spread over those near it", model={"target_spread": 8.0}),
    "cool": Change(choice="actions sampled", words="at temperature 0.5", acting={"temperature": 0.5}),
    "nucleus": Change(choice="actions sampled", words="of the likeliest 0.8 (top-p)", acting={"top_p": 0.8}),
    "to-zero": Change(choice="cosine to a tenth", words="to zero", train={"final_lr": 0.0}),
}
"""By name of the part."""


@dataclass(frozen=True, kw_only=True)
class BeyondSettings(RecipeSettings):
    """What is trained, and on what."""

    minutes: float = 1.5
    """Training minutes of each run."""
    steps: int = 1_000_000
    """Optimizer steps at which a run ends before its minutes are over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.minutes < math.inf:
            raise UserError(f"--minutes is {self.minutes}, allowed above 0 and finite")


FULL: Mapping[str, Any] = {"seeds": [0, 1, 2, 3], "minutes": 30.0}
"""What the full protocol changes."""


@dataclass(frozen=True)
class Beyond(Changed):
    """One idea at a time, at equal minutes."""

    settings: BeyondSettings
    name = "beyond"
    question = "Which ideas beyond the paper help?"
    all_changes = CHANGES
    prompts = ("none",)
    without_effect = PLACES  # threads decide how many steps the minutes have, as what runs beside does
    is_timed = True

    @property
    def budget(self) -> str:
        """The minutes of each run."""
        return f"{self.settings.minutes:g} minutes"

    def changed_recipe(self, change: Change, seed: int) -> Recipe:
        """The recipe of a change, which ends with its minutes."""
        model, train = {"target_spread": 0.0, **change.model}, {**PAPER, **change.train}
        changed = super().changed_recipe(dataclasses.replace(change, model=model, train=train), seed)
        return dataclasses.replace(changed, train=dataclasses.replace(changed.train, minutes=self.settings.minutes))
