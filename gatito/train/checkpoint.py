"""Checkpoints: a Hugging Face directory, plus `training/` for what resuming needs. No pickle.

config.json, generation_config.json, model.safetensors     transformers
processor_config.json, tokenizer.model, layouts.json       the processor
README.md                                                   model card
training/optimizer.safetensors, training/state.json         to resume
training/manifest.json                                      SHA-256 of every file above
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gatito.data.publish import published, remove_folder
from gatito.data.store import sha256_of
from gatito.errors import UserError
from gatito.model import GatitoForCausalLM, GatitoProcessor

FOLDER, SCHEMA = "checkpoints", 1
MANIFEST = "training/manifest.json"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What resuming needs beside the weights."""

    step: int
    """Optimizer steps done."""
    settings: dict[str, Any]
    """Seed, batch, context, data hash and the like, compared on resuming."""
    optimizer: dict[str, Tensor]
    """AdamW's moments and step count by parameter name."""
    elapsed_s: float = 0.0
    """Seconds of training so far, of which `--train.minutes` is the limit."""


def save_checkpoint(
    out: Path,
    model: GatitoForCausalLM,
    processor: GatitoProcessor,
    state: TrainingState,
    card: str,
    *,
    keep: int,
    keep_every: int = 0,
    also: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Write `out/checkpoints/step-N` atomically, then remove all but the newest `keep` and the multiples of
    `keep_every` steps; `also` writes what else belongs into the folder."""
    target = out / FOLDER / f"step-{state.step:08d}"
    try:
        # It exists where it is damaged and the run went back behind it.
        with published(target, replace=True) as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            (folder / "README.md").write_text(card)
            also(folder)
            (folder / "training").mkdir()
            save_file(state.optimizer, folder / "training/optimizer.safetensors")
            values = {"schema": SCHEMA, "step": state.step, "settings": state.settings, "elapsed_s": state.elapsed_s}
            (folder / "training/state.json").write_text(json.dumps(values, indent=1))
            files = sorted(p for p in folder.rglob("*") if p.is_file())
            hashes = {str(p.relative_to(folder)): sha256_of(p) for p in files}
            (folder / MANIFEST).write_text(json.dumps(hashes, indent=1))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save {target}: {error}; what was saved before is intact") from None
    # Newer ones can only be damaged ones that the run went back behind; others were put aside.
    for old in [path for path in list_checkpoints(out) if path.name <= target.name][:-keep]:
        if not keep_every or step_of(old) % keep_every:
            remove_folder(old)
    return target


def list_checkpoints(out: Path) -> list[Path]:
    """Finished checkpoints below a run's folder, oldest first."""
    folder = out / FOLDER
    return sorted(p for p in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name)) if folder.is_dir() else []


def put_aside_newer(out: Path, step: int) -> None:
    """Move the checkpoints after `step`, to which a run was told to go back, into `OUT/abandoned-K`, and say so."""
    newer = [path for path in list_checkpoints(out) if step_of(path) > step]
    if not newer:
        return
    numbers = (k for k in range(1, 10**6) if not (out / f"abandoned-{k}").exists())
    aside = out / f"abandoned-{next(numbers)}"
    aside.mkdir()
    for path in newer:
        path.rename(aside / path.name)
    print(f"{len(newer)} checkpoints after step {step} are in {aside} now")


def step_of(checkpoint: Path) -> int:
    """Optimizer steps of a checkpoint, by its name."""
    return int(checkpoint.name.removeprefix("step-"))


def find_problem(checkpoint: Path) -> str | None:
    """Say what is wrong with a checkpoint's files, or None where all match their hashes."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return f"{manifest} is missing"
    try:
        hashes = json.loads(manifest.read_text())
    except ValueError:
        return f"{manifest} is damaged"
    if not isinstance(hashes, dict):
        return f"{manifest} is damaged"
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if sha256_of(path) != expected:
            return f"{path} does not match its SHA-256"
    return None


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint folder: the path itself, or the newest one of a run whose files match their hashes.

    Damaged ones of a run are passed over and said so.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        # One from the hub has no manifest, since it has nothing to resume.
        problem = find_problem(folder) if (folder / MANIFEST).is_file() else None
        if problem:
            raise UserError(f"checkpoint refused: {problem}; use another one or train again")
        return folder
    found = newest_intact(folder)
    if found is None:
        raise UserError(f"no checkpoint at {path}: neither config.json nor {FOLDER}/step-* in it; run gatito train")
    return found


def newest_intact(out: Path, say: Callable[[str], object] = print) -> Path | None:
    """The newest checkpoint of a run whose files match their hashes; damaged ones are passed over and said so.

    Raises `UserError` where all are damaged: a fresh start would hide that.
    """
    checkpoints = list_checkpoints(out)
    for checkpoint in reversed(checkpoints):
        problem = find_problem(checkpoint)
        if problem is None:
            return checkpoint
        say(f"skipping a damaged checkpoint: {problem}")
    if checkpoints:
        raise UserError(f"{out / FOLDER}: every checkpoint is damaged; remove them to start afresh")
    return None


def load_newest(out: Path, say: Callable[[str], object] = print) -> tuple[Path, TrainingState] | None:
    """The newest checkpoint that is intact, see `newest_intact`, with what it holds to resume."""
    checkpoint = newest_intact(out, say)
    return None if checkpoint is None else (checkpoint, read_state(checkpoint))


def load_step(out: Path, step: int) -> tuple[Path, TrainingState]:
    """The checkpoint of a step; raises `UserError` where there is none, or it is damaged."""
    checkpoint = out / FOLDER / f"step-{step:08d}"
    if checkpoint not in list_checkpoints(out):
        there = ", ".join(str(step_of(path)) for path in list_checkpoints(out)) or "none"
        raise UserError(f"no checkpoint of step {step} in {out}; there are: {there}")
    problem = find_problem(checkpoint)
    if problem:
        raise UserError(f"cannot resume step {step}: {problem}; choose another step, or --train.resume auto")
    return checkpoint, read_state(checkpoint)


def read_state(checkpoint: Path) -> TrainingState:
    """What a checkpoint whose hashes were checked holds to resume; raises `UserError` for a newer schema."""
    values = json.loads((checkpoint / "training/state.json").read_text())
    if values["schema"] > SCHEMA:
        raise UserError(f"{checkpoint}: schema {values['schema']}, this gatito reads up to {SCHEMA}; upgrade gatito")
    return TrainingState(
        step=values["step"],
        settings=values["settings"],
        optimizer=load_file(checkpoint / "training/optimizer.safetensors"),
        elapsed_s=values.get("elapsed_s", 0.0),  # earlier checkpoints have none
    )
