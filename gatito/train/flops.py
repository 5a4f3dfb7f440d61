"""Floating-point operations of the network: how much a batch asks of it, and what that costs.

Matrix products and convolutions are counted, two operations for a multiplication and its addition. Norms, softmax,
GELU, gated sums and the lookup of embeddings are not: they are little, and bound by memory. The convention is that of
Chowdhery et al. 2022 (PaLM), appendix B: backward costs twice the forward pass, and what is computed a second time
(activation checkpointing) is no useful work. Unlike there, neither is what is masked: padding, other sequences of a
row and the future.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch

from gatito.data.packing import Batch
from gatito.model import GatitoConfig
from gatito.model.loss import predicting
from gatito.tokenizers.patches import PATCH

STEM = 4
"""Side and stride of the first convolution of a patch."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much a batch asks of the network; means of batches may be fractions."""

    positions: float
    """Positions of the trunk."""
    pairs: float
    """Pairs (query, key) of positions that attention computes, in each head of each layer."""
    patches: float
    """Distinct image patches."""
    observations: float
    """Observations that are read into latents."""
    observed_tokens: float
    """Tokens of these."""
    action_tokens: float
    """Tokens that the action decoder predicts."""
    action_pairs: float
    """Pairs (query, key) of these, in each head of each of its layers."""
    targets: Mapping[str, float]
    """Targets by id group."""

    def scaled(self, factor: float) -> "Counts":
        """So many times as much of everything."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        targets = {name: count * factor for name, count in values.pop("targets").items()}
        return Counts(targets=targets, **{name: value * factor for name, value in values.items()})


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of a forward pass by part."""

    trunk: float
    """Projections and feed-forwards of the trunk."""
    attention: float
    """Scores and weighted values of the trunk."""
    patch_stem: float
    """First convolution of the patches."""
    patches: float
    """The rest of the patch embedding."""
    resampler: float
    """Reading observations into latents."""
    action_decoder: float
    """Its blocks, attention included."""
    logits: float
    """Output head, at targets."""

    @property
    def forward(self) -> float:
        """All of them."""
        return sum(self.by_part().values())

    @property
    def training(self) -> float:
        """Forward and backward, which is a gradient of inputs and one of weights; pixels need none."""
        return 3 * self.forward - self.patch_stem

    def by_part(self) -> dict[str, float]:
        """Operations by name of the part, as they add up."""
        return {field.name.replace("_", " "): getattr(self, field.name) for field in fields(self)}


def batch_flops(config: GatitoConfig, batch: Batch, *, dense: bool = False) -> float:
    """Forward and backward FLOPs of a batch; see `batch_counts` for `dense`."""
    return forward_flops(config, batch_counts(config, batch, dense=dense)).training


def batch_counts(config: GatitoConfig, batch: Batch, *, dense: bool = False) -> Counts:
    """What a batch asks of the network; count before the batch moves to a GPU, which would have to be waited for.

    Useful work by default: no padding, attention within sequences, and of it the past alone. With `dense` all B x L
    positions and all pairs of a row, as a masked matrix product computes them.

        positions 0 1 2 0 1 .    useful: 1 + 2 + 3 + 1 + 2 = 9 pairs; dense: 6 * 6 = 36
    """
    B, L = batch.input_ids.shape
    real = batch.segments > 0
    sees = (batch.positions + 1)[real]  # keys of each query
    sizes = [] if batch.action_sizes is None else batch.action_sizes.tolist()
    return Counts(
        positions=B * L if dense else len(sees),
        pairs=B * L * L if dense else int(sees.sum()),
        patches=len(batch.patches) if len(batch.patch_indices) else 0,
        observations=0 if batch.latent_slots is None else len(batch.latent_slots),
        observed_tokens=0 if batch.observation_ids is None else len(batch.observation_ids),
        action_tokens=sum(n * count for n, count in sizes),
        action_pairs=sum((n * n if dense else n * (n + 1) // 2) * count for n, count in sizes),
        targets=_targets(config, batch),
    )


def _targets(config: GatitoConfig, batch: Batch) -> dict[str, float]:
    wanted = batch.input_ids[:, 1:][predicting(batch.loss_mask, batch.segments)]
    if batch.action_ids is not None and batch.action_targets is not None:
        wanted = torch.cat([wanted, batch.action_ids[batch.action_targets]])
    ranges = config.vocabulary.groups
    return {name: int(((wanted >= start) & (wanted < stop)).sum()) for name, (start, stop) in ranges.items()}


def forward_flops(config: GatitoConfig, counts: Counts) -> Flops:
    """FLOPs of a forward pass."""
    channels, grid = config.patch_channels, (PATCH // STEM) ** 2
    stem = 2 * grid * channels * 3 * STEM**2
    convolutions = 2 * 2 * grid * channels * channels * 9
    projection = 2 * grid * channels * config.hidden_size
    layers = config.num_hidden_layers
    return Flops(
        trunk=layers * counts.positions * _block(config, config.intermediate_size),
        attention=layers * counts.pairs * _pair(config),
        patch_stem=counts.patches * stem,
        patches=counts.patches * (convolutions + projection),
        resampler=_resampler(config, counts),
        action_decoder=config.action_layers
        * (counts.action_tokens * _block(config, config.hidden_size) + counts.action_pairs * _pair(config)),
        logits=sum(2 * config.hidden_size * n * num_compared(config, name) for name, n in counts.targets.items()),
    )


def num_compared(config: GatitoConfig, group: str) -> int:
    """Ids that a target of a group is compared with."""
    start, stop = config.vocabulary.groups[group]
    return config.vocab_size if config.loss_over == "full" else stop - start


def _inner(config: GatitoConfig) -> int:
    return config.num_attention_heads * config.head_dim


def _block(config: GatitoConfig, hidden: int) -> int:
    """Of one position: queries, keys, values and output, and the three projections of the GEGLU."""
    return 2 * config.hidden_size * (4 * _inner(config) + 3 * hidden)


def _pair(config: GatitoConfig) -> int:
    """Of a query and a key in all heads: their score, and the value it weighs."""
    return 2 * 2 * _inner(config)


def _resampler(config: GatitoConfig, counts: Counts) -> float:
    """A feed-forward on the latents; then layers in which they attend to their observation and each other."""
    D, inner, m = config.hidden_size, _inner(config), config.latents
    latents = m * counts.observations
    feed_forward = latents * 2 * D * 3 * config.intermediate_size
    pairs = m * (counts.observed_tokens + latents)
    attention = latents * 2 * D * 4 * inner + counts.observed_tokens * 2 * D * 2 * inner + pairs * _pair(config)
    return feed_forward + config.resampler_depth * (attention + feed_forward)
