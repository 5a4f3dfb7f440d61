"""What a recipe or a checkpoint is made of, and how far its context reaches."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gatito.data.sampler import timestep_chunks, timestep_positions
from gatito.data.store import Store, TokenDataset
from gatito.model import GatitoConfig, GatitoForCausalLM
from gatito.tokenizers import Layout

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
    """What is counted: timesteps, pairs, or tokens of texts."""

    @property
    def held(self) -> int:
        """How many of them a context holds; about, where their lengths differ."""
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
        runs = timestep_chunks(dataset)
        positions = sum(int(timestep_positions(dataset, config.trunk, *run)[-1]) for run in runs)
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


def expected_epochs(store: Store, config: GatitoConfig, rows: int) -> dict[str, float]:
    """How often so many rows of a batch go over each dataset, by name, their prompts counted in."""
    reach = zip(store.datasets, reach_of_data(list(store), config), strict=True)
    return {d.name: rows * d.weight * config.context / (row.positions * d.num_timesteps) for d, row in reach}


def reach_of_layouts(layouts: Mapping[str, Layout], config: GatitoConfig) -> list[Reach]:
    """One row per task, from its spaces alone: the text inside an observation, of unknown length, is left out."""
    rows = []
    for task, layout in sorted(layouts.items()):
        ids, local = layout.empty_timestep()
        positions = float(config.trunk.costs(ids, local).sum())
        rows.append(Reach(name=task, tokens=len(ids), positions=positions, context=config.context, unit="timesteps"))
    return rows
