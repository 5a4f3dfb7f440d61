"""What is checked of an episode before it trains."""

from dataclasses import dataclass

import numpy as np

from gatito.data.episode import Episode
from gatito.errors import UserError
from gatito.tokenizers.codec import CLIP_TOLERANCE, is_clipped, out_of_bounds
from gatito.tokenizers.fields import value_at
from gatito.tokenizers.layout import Layout
from gatito.tokenizers.sequence import TokenSequence


@dataclass(frozen=True, kw_only=True)
class Clipped:
    """How many values lay outside their declared bounds."""

    observations: int = 0
    """Clipped by the bins."""
    actions: int = 0
    """Clipped to the bounds."""

    def __add__(self, other: "Clipped") -> "Clipped":
        return Clipped(observations=self.observations + other.observations, actions=self.actions + other.actions)


def checked_tokens(
    layout: Layout, episode: Episode, *, where: str, clip_actions: bool = False
) -> tuple[TokenSequence, Clipped]:
    """Tokens of an episode, with the number of values that had to be clipped.

    Raises `UserError` for NaN, a wrong shape or dtype, and for an action further than 1e-3 outside its bounds
    unless `clip_actions`.
    """
    sequence = layout.episode_tokens(episode.observations, episode.actions, targets=episode.targets, where=where)
    observations = layout.num_clipped(episode.observations)
    actions = 0
    for field in layout.actions:
        if field.kind != "continuous":
            continue
        values = np.asarray(value_at(episode.actions, field.path))
        outside = out_of_bounds(field, values)
        actions += int(np.count_nonzero(is_clipped(field, values)))
        if outside.max() > CLIP_TOLERANCE and not clip_actions:
            t, i = (int(k[0]) for k in np.nonzero(outside > CLIP_TOLERANCE))
            name = f"action {field.name}".rstrip()
            value = values.reshape(len(values), -1)[t, i]
            raise UserError(
                f"{where}, timestep {t}: {name}[{i}] is {value:.6g}, allowed [{field.low[i]}, "
                f"{field.high[i]}]; pass --clip-actions to clip it, or rescale the dataset"
            )
    return sequence, Clipped(observations=observations, actions=actions)
