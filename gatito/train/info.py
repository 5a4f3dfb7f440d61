"""What a recipe or a checkpoint is made of, and how far its context reaches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gatito.data.sampler import CHUNK, timestep_positions
from gatito.data.store import TokenDataset
from gatito.model import GatitoConfig, GatitoForCausalLM
from gatito.tokenizers import Layout
from gatito.tokenizers.trunk import Trunk
from gatito.tokenizers.vocabulary import ACTION_POSITION

PARTS = {
    "token table": "model.embedding.tokens.",
    "other embeddings": "model.embedding.",
    "resampler": "model.resampler.",
    "trunk": "model.blocks.",
    "action decoder": "model.action_decoder.",
}
"""Name of a part to the prefix of its parameters; the first that fits counts."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How much of the context a timestep takes."""

    name: str
    """Task, or dataset of texts or pairs."""
    tokens: float
    """Tokens of a timestep, mean."""
    positions: float
    """Positions of a timestep in the trunk, mean."""
    context: int
    """Positions of a context."""
    unit: str
    """What is counted: timesteps, or tokens of texts."""

    @property
    def timesteps(self) -> int:
        """Whole timesteps that a context holds."""
        return int(self.context / self.positions)


def parameters_by_part(config: GatitoConfig) -> dict[str, int]:
    """Numbers of parameters, counted on a model without storage."""
    with torch.device("meta"):
        model = GatitoForCausalLM(config)
    counts = dict.fromkeys(PARTS, 0)
    counts["norms"] = 0
    for name, parameter in model.named_parameters():
        part = next((part for part, prefix in PARTS.items() if name.startswith(prefix)), "norms")
        counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def reach_of_data(datasets: list[TokenDataset], config: GatitoConfig) -> list[Reach]:
    """One row per dataset, measured on all of its timesteps."""
    rows = []
    for dataset in datasets:
        stops = range(0, dataset.num_timesteps, CHUNK)
        chunks = [(first, min(first + CHUNK, dataset.num_timesteps)) for first in stops]
        positions = sum(int(timestep_positions(dataset, config.trunk, *chunk)[-1]) for chunk in chunks)
        rows.append(
            Reach(
                name=str(dataset.metadata["task"]),
                tokens=dataset.metadata["tokens"] / dataset.num_timesteps,
                positions=positions / dataset.num_timesteps,
                context=config.context,
                unit={"control": "timesteps", "pairs": "pairs"}.get(dataset.kind, "tokens"),
            )
        )
    return rows


def reach_of_layouts(layouts: Mapping[str, Layout], config: GatitoConfig) -> list[Reach]:
    """One row per task, from its spaces alone: the text inside an observation, of unknown length, is left out."""
    rows = []
    for task, layout in sorted(layouts.items()):
        ids, local = _one_timestep(layout, config.trunk)
        positions = float(config.trunk.costs(ids, local).sum())
        rows.append(Reach(name=task, tokens=len(ids), positions=positions, context=config.context, unit="timesteps"))
    return rows


def _one_timestep(layout: Layout, trunk: Trunk) -> tuple[Any, Any]:
    """Ids and local positions of a timestep whose texts are empty; of the ids only the separator matters."""
    observed = layout.num_observation_tokens
    ids = np.zeros(observed + layout.num_action_tokens, np.int64)
    ids[observed - 1] = trunk.vocabulary.separator
    local = np.full(len(ids), ACTION_POSITION)
    local[:observed] = np.arange(observed)
    return ids, local
