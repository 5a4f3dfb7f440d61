"""How a policy is cloned: what `gatito baseline clone` takes beside demonstrations and tasks."""

import math
from dataclasses import dataclass

from gatito.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CloneConfig:
    """What is trained, and for how long."""

    width: int = 256
    """Of the hidden layers."""
    layers: int = 2
    """Hidden layers behind images."""
    batch: int = 128
    """Timesteps of a step, drawn of all."""
    steps: int = 3000
    """Optimizer steps, where --flops says no other number."""
    flops: float | None = None
    """Budget of training one task, forward and backward, in floating-point operations: it decides the steps."""
    lr: float = 1e-3
    """Learning rate of AdamW at the first step; it falls to 0 along a cosine."""
    seed: int = 0
    """Of the weights and of what is drawn."""
    temperature: float = 0.0
    """Of discrete actions, which are drawn; 0 takes the likeliest."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "batch", "steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}, allowed 1 and more")
        if self.flops is not None and not (math.isfinite(self.flops) and self.flops > 0):
            raise UserError(f"--flops is {self.flops}, expected a finite number above 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"--lr is {self.lr}, expected a finite number above 0")
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"--seed is {self.seed}, allowed 0 to {(1 << 63) - 1}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"--temperature is {self.temperature}, expected a finite number from 0")
