"""What must not change between a run and its continuation."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from gatito.data.store import Store
from gatito.errors import UserError
from gatito.train.configs import Recipe

FREE = (
    "minutes", "workers", "accumulation", "sharding", "activation_checkpointing", "compile", "log_every",
    "save_every", "keep", "keep_every", "resume", "resume_step", "accept_changes", "tracker",
    "evaluate_every", "evaluate_tasks", "evaluate_episodes", "evaluate_prompt",
)  # fmt: skip
"""Settings of `TrainConfig` that may change: none of them decides what is learned."""
BEFORE = {
    "model.latents": 0,
    "model.resampler_depth": 0,
    "model.resample_images": False,
    "model.action_layers": 0,
    "train.predict_observations": False,
    "train.first_lr": 0.0,
}
"""What a run had that was begun before these settings were there."""


def run_settings(recipe: Recipe, store: Store) -> dict[str, Any]:
    """The settings of a run as a checkpoint keeps them, with the hash of its data."""
    train = {f"train.{name}": value for name, value in asdict(recipe.train).items() if name not in FREE}
    return {"data": store.sha256, **train} | {f"model.{k}": v for k, v in asdict(recipe.model).items()}


def check_same_settings(
    saved: dict[str, Any], asked: dict[str, Any], checkpoint: Path, *, accept_changes: bool = False
) -> None:
    """Raise `UserError` with both values where a run is to be continued with another setting.

    `accept_changes` lets all through but those of the network, whose weights would not fit.
    """
    for name, value in asked.items():
        if accept_changes and not name.startswith("model."):
            continue
        was = saved.get(name, BEFORE.get(name))
        if was != value:
            can = not name.startswith("model.")
            hint = "; --train.accept_changes true continues with it" if can else "; a network keeps its shape"
            raise UserError(f"cannot resume {checkpoint}: {name} was {was!r}, now {value!r}{hint}")
