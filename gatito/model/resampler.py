"""Reads what is never predicted into few vectors: an observation into latents, an action that was taken into one.

Tokens come as one flat stream, groups of equal length (an observation, an action) next to each other, so that each
length is one dense view of the stream and nothing is padded. `Sizes` says how many groups have which length.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatito.model.blocks import GEGLU, BranchOut
from gatito.model.configuration import GatitoConfig
from gatito.tokenizers.vocabulary import NUM_LOCAL_POSITIONS

Sizes = Sequence[tuple[int, int]]
"""(length, number of groups) for each length, in the order of the stream."""


def views(x: Tensor, sizes: Sizes) -> Iterator[Tensor]:
    """Dense views (g, n, ...) of a flat stream (N, ...), one for each length n.

    Of an empty stream one empty view: what is computed of it is nothing, but gives every parameter a gradient, which
    processes that exchange gradients need of a batch without observations too.
    """
    start = 0
    for length, count in sizes or [(1, 0)]:
        yield x[start : start + length * count].view(count, length, *x.shape[1:])
        start += length * count


class GateTable(nn.Embedding):
    """Gates of every place in a group."""


class GatedSum(nn.Module):
    """Sums each group into `count` vectors: every token is multiplied, channel by channel, by gates of its place.

    A plain sum of tokens forgets which value stood where; gates that differ from place to place keep them apart.
    """

    def __init__(self, config: GatitoConfig, count: int) -> None:
        super().__init__()
        self.count = count
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gates = GateTable(NUM_LOCAL_POSITIONS, count * config.hidden_size)

    def forward(self, x: Tensor, sizes: Sizes) -> Tensor:
        """Tokens (N, D), normed, to vectors (G, count, D)."""
        summed = []
        for part in views(self.norm(x), sizes):
            _, n, D = part.shape
            gates = self.gates.weight[:n].view(n, self.count, D)
            # A loop over the few latents: the product of all of them at once would be `count` times the stream.
            latents = [(part * gates[:, j]).sum(1) for j in range(self.count)]  # each (g, D)
            summed.append(torch.stack(latents, dim=1) / n**0.5)
        return torch.cat(summed)


class LatentAttention(nn.Module):
    """A layer of a Perceiver resampler (Alayrac et al. 2022): latents look at their observation and each other."""

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__()
        D, self.head_dim = config.hidden_size, config.head_dim
        inner = config.num_attention_heads * config.head_dim
        self.token_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.latent_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.queries = nn.Linear(D, inner, bias=False)
        self.keys_values = nn.Linear(D, 2 * inner, bias=False)
        self.out = BranchOut(inner, D, bias=False)
        self.feed_forward_norm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.feed_forward = GEGLU(D, config.intermediate_size)

    def forward(self, latents: Tensor, x: Tensor, sizes: Sizes) -> Tensor:
        """Latents (G, m, D) and their tokens (N, D) to latents (G, m, D)."""
        normed = self.latent_norm(latents)
        queries = self._heads(self.queries(normed))  # (G, H, m, head_dim)
        own = self.keys_values(normed)  # (G, m, 2 * inner)
        seen, first = [], 0
        for part in views(self.keys_values(self.token_norm(x)), sizes):
            groups = slice(first, first + len(part))
            keys, values = self._heads(torch.cat([part, own[groups]], dim=1)).chunk(2, dim=1)
            seen.append(F.scaled_dot_product_attention(queries[groups], keys, values))
            first += len(part)
        attended = torch.cat(seen).transpose(1, 2).flatten(2)  # (G, m, inner)
        latents = latents + self.out(attended)
        return latents + self.feed_forward(self.feed_forward_norm(latents))

    def _heads(self, x: Tensor) -> Tensor:
        """(g, n, heads * head_dim) to (g, heads, n, head_dim)."""
        return x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim)).transpose(1, 2)


class Resampler(nn.Module):
    """Reads each observation into m latents, which see nothing but that observation.

    A gated sum and a feed-forward, then `resampler_depth` layers of attention, which ask for what the sum, a fixed
    reading by place, cannot know where to find.
    """

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__()
        self.latents = nn.Embedding(config.latents, config.hidden_size)
        self.sum = GatedSum(config, config.latents)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = GEGLU(config.hidden_size, config.intermediate_size)
        self.layers = nn.ModuleList(LatentAttention(config) for _ in range(config.resampler_depth))

    def forward(self, x: Tensor, sizes: Sizes) -> Tensor:
        """Embedded tokens (N, D) of G observations to latents (G, m, D)."""
        latents = self.latents.weight + self.sum(x, sizes)
        latents = latents + self.feed_forward(self.feed_forward_norm(latents))
        for layer in self.layers:
            latents = layer(latents, x, sizes)
        return latents
