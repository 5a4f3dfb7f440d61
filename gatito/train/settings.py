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
    "evaluate_limit_s",
)  # fmt: skip
"""Settings of `TrainConfig` that may change: none of them decides what is learned."""
BEFORE = {
    "init": None,
    "lora.rank": 0,
    "model.latents": 0,
    "model.resampler_depth": 0,
    "model.resample_images": False,
    "model.action_layers": 0,
    "train.predict_observations": False,
    "train.first_lr": 0.0,
    "train.optimizer": "adamw",
    "train.average": 0.0,
    "model.target_spread": 0.0,
}
"""What a run had that was begun before these settings were there."""


def run_settings(recipe: Recipe, store: Store) -> dict[str, Any]:
    """The settings of a run that began with no weights, as a checkpoint keeps them, with the hash of its data."""
    train = {f"train.{name}": value for name, value in asdict(recipe.train).items() if name not in FREE}
    if recipe.lora.rank:
        train |= {f"lora.{name}": value for name, value in asdict(recipe.lora).items()}
    return {"data": store.sha256, "init": None} | train | {f"model.{k}": v for k, v in asdict(recipe.model).items()}


def check_same_settings(
    saved: dict[str, Any], asked: dict[str, Any], checkpoint: Path, *, accept_changes: bool = False
) -> list[str]:
    """Raise `UserError` with both values where a run is to be continued with other settings.

    `accept_changes` lets through all but those of the network, whose weights would not fit; they are returned.
    """
    changed = {
        name: f"{name} was {was!r}, now {value!r}"
        for name, value in asked.items()
        if (was := saved.get(name, BEFORE.get(name))) != value
    }
    fixed = [said for name, said in changed.items() if name.startswith("model.")]
    if fixed:
        raise UserError(f"cannot resume {checkpoint}: {'; '.join(fixed)}; a network keeps its shape")
    if changed and not accept_changes:
        hint = "--train.accept_changes true continues nevertheless"
        raise UserError(f"cannot resume {checkpoint}: {'; '.join(changed.values())}; {hint}")
    return list(changed.values())
