"""How an action token is picked from the logits of the ids that are legal for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gatito.errors import UserError
from gatito.eval import TEMPERATURE

MIN_TEMPERATURE = 1e-6
"""Logits divided by less could overflow."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The likeliest id, or one sampled, of all legal ids or of the likeliest only."""

    temperature: float = TEMPERATURE
    """Logits are divided by it; 0 takes the likeliest id."""
    top_p: float = 1.0
    """Sampled are the likeliest ids that together have this probability (Holtzman et al. 2020); 1 samples all."""

    def __post_init__(self) -> None:
        t = self.temperature
        if not (t == 0.0 or MIN_TEMPERATURE <= t < float("inf")):
            raise UserError(f"--temperature is {t}, allowed 0 (the likeliest), or {MIN_TEMPERATURE} and more")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"--top-p is {self.top_p}, allowed above 0 to 1 (all legal ids)")

    def pick(self, logits: Tensor, rngs: Sequence[np.random.Generator]) -> NDArray[np.int64]:
        """Index (R,) into the legal ids, whose logits are (R, n); each row draws once from a generator of its own.

        Raises `UserError` for logits that are no numbers: any id would be made up.
        """
        values = logits.float().cpu()
        if not bool(values.isfinite().all()):
            raise UserError(
                "the checkpoint computes no numbers: logits of legal ids are NaN or infinite; act with an earlier one"
            )
        if self.temperature == 0.0:
            likeliest: NDArray[np.int64] = values.argmax(-1).numpy()
            return likeliest
        probabilities = torch.softmax(values.double() / self.temperature, -1)
        if self.top_p < 1.0:
            probabilities = nucleus(probabilities, self.top_p)
        cumulative = probabilities.cumsum(-1).numpy()
        draws = np.array([rng.random() for rng in rngs])
        picked: NDArray[np.int64] = (cumulative < draws[:, None]).sum(-1)
        # The sum may fall short of 1 by rounding: the last id that has any probability takes what is above.
        last = logits.shape[-1] - 1 - probabilities.flip(-1).gt(0).int().argmax(-1).numpy()
        return np.minimum(picked, last)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Probabilities (R, n) of the fewest likeliest ids that reach `top_p` together, scaled to 1; the others are 0."""
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # of the likelier ones
    kept = torch.zeros_like(probabilities).scatter(-1, ids, ordered.where(before < top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)
