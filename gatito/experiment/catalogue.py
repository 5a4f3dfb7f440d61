"""The experiments that there are, by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatito.experiment import ablation, baselines, beyond, few_shot, hidden_goal, scaling
from gatito.experiment.plan import Experiment, Settings


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One experiment."""

    make: type[Any]
    """Takes its settings."""
    settings: type[Settings]
    """Their defaults are the short form, which two cores finish in 40 minutes."""
    full: Mapping[str, Any]
    """What the full protocol changes of them."""

    def experiment(self, settings: Settings) -> Experiment:
        """The experiment with its settings."""
        made: Experiment = self.make(settings)
        return made


EXPERIMENTS = {
    "few-shot": Entry(make=few_shot.FewShot, settings=few_shot.FewShotSettings, full=few_shot.FULL),
    "hidden-goal": Entry(make=hidden_goal.HiddenGoal, settings=hidden_goal.HiddenGoalSettings, full=hidden_goal.FULL),
    "ablation": Entry(make=ablation.Ablation, settings=ablation.AblationSettings, full=ablation.FULL),
    "beyond": Entry(make=beyond.Beyond, settings=beyond.BeyondSettings, full=beyond.FULL),
    "baselines": Entry(make=baselines.Baselines, settings=baselines.BaselinesSettings, full=baselines.FULL),
    "scaling": Entry(make=scaling.Scaling, settings=scaling.ScalingSettings, full=scaling.FULL),
}
"""By name, as typed."""
