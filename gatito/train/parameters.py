"""Numbers of parameters by part of the network, counted on a model without storage."""

from dataclasses import dataclass, fields

import torch
from torch import nn

from gatito.model import GatitoConfig, GatitoForCausalLM

PREFIXES = {
    "patch_embedding": "model.embedding.patches.",
    "resampler": "model.resampler.",
    "trunk": "model.blocks.",
    "action_decoder": "model.action_decoder.",
    "norm": "model.norm.",
}
"""Field of `Parameters` to the prefix of its parameters' names, lookup tables aside."""


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Numbers of parameters; a lookup table is what a row is read from by its index, and costs no multiplication."""

    token_table: int
    """Lookup table of ids, which is the output head too."""
    other_tables: int
    """Lookup tables of places: local and patch positions, gates and latents of resampler and action decoder."""
    patch_embedding: int
    """ResNet block of image patches."""
    resampler: int
    """Reads observations into latents."""
    trunk: int
    """Transformer blocks."""
    action_decoder: int
    """Predicts the tokens of an action."""
    norm: int
    """Last norm of the trunk."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.by_part().values())

    @property
    def non_embedding(self) -> int:
        """All but the lookup tables: the size that goes with the computation."""
        return self.total - self.token_table - self.other_tables

    def by_part(self) -> dict[str, int]:
        """Counts by name of the part, as they add up."""
        return {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}


def count_parameters(config: GatitoConfig) -> Parameters:
    """The parameters of a configuration."""
    with torch.device("meta"):
        model = GatitoForCausalLM(config)
    counts = dict.fromkeys((field.name for field in fields(Parameters)), 0)
    table = model.get_input_embeddings().weight
    tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter in tables:
            counts["token_table" if parameter is table else "other_tables"] += parameter.numel()
        else:
            (part,) = [part for part, prefix in PREFIXES.items() if name.startswith(prefix)]
            counts[part] += parameter.numel()
    return Parameters(**counts)
