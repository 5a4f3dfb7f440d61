"""Trackers that Accelerate sends metrics to: whether they are there, and that none of them asks for a login."""

import importlib.util
import netrc
import os

from gatito.errors import UserError
from gatito.train.configs import TrainConfig


def check_tracker(config: TrainConfig) -> None:
    """Raise `UserError` for a tracker that is not installed; one that would ask for a login writes to this disk."""
    if config.tracker == "none":
        return
    if importlib.util.find_spec(config.tracker) is None:
        raise UserError(f"--train.tracker {config.tracker} needs its package: pip install {config.tracker}")
    if config.tracker == "wandb" and "WANDB_MODE" not in os.environ and not _knows_wandb():
        os.environ["WANDB_MODE"] = "offline"
        print("wandb: nobody is logged in, so the run is kept on this disk; wandb sync uploads it later")


def _knows_wandb() -> bool:
    """Whether an API key of Weights & Biases is at hand."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
