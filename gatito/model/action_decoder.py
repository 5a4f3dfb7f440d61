"""Decodes the tokens of an action one after another on top of one position of the trunk (a depth transformer)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from gatito.model.blocks import Block
from gatito.model.configuration import GatitoConfig
from gatito.model.resampler import GatedSum, Sizes, views
from gatito.tokenizers.vocabulary import NUM_LOCAL_POSITIONS


class ActionDecoder(nn.Module):
    """A small causal transformer over the tokens of one action, each given what the trunk made of the past.

    token j is predicted from    state + norm(place i + token i - 1)    for i = 0, ..., j; there is no token -1
    """

    def __init__(self, config: GatitoConfig) -> None:
        super().__init__()
        D, eps = config.hidden_size, config.layer_norm_eps
        self.places = nn.Embedding(NUM_LOCAL_POSITIONS, D)
        self.token_norm = nn.LayerNorm(D, eps=eps)
        # Each action token passes here, and one position a timestep the trunk: hence no wider than the stream.
        self.blocks = nn.ModuleList(Block(config, layer, hidden=D) for layer in range(config.action_layers))
        self.norm = nn.LayerNorm(D, eps=eps)
        self.taken = GatedSum(config, count=1)

    def forward(self, states: Tensor, tokens: Tensor, sizes: Sizes) -> Tensor:
        """States (A, D) of the trunk and embedded action tokens (M, D) to the states (M, D) that predict these."""
        outputs, first = [], 0
        for part in views(tokens, sizes):
            previous = F.pad(part, (0, 0, 1, -1))  # (a, n, D), zeros before the first
            x = self._inputs(states[first : first + len(part), None], previous, 0)
            for block in self.blocks:
                x = block(x, None, None, None)
            outputs.append(self.norm(x).flatten(0, 1))
            first += len(part)
        return torch.cat(outputs)

    def step(self, states: Tensor, previous: Tensor | None, cache: DynamicCache) -> Tensor:
        """The state (R, D) that predicts a token, given the embedded one (R, D) before it; None at the first."""
        place = cache.get_seq_length()
        token = torch.zeros_like(states) if previous is None else previous
        x = self._inputs(states[:, None], token[:, None], place)  # (R, 1, D)
        mask = torch.ones((1, 1, 1, place + 1), dtype=torch.bool, device=x.device)
        for block in self.blocks:
            x = block(x, mask, None, cache)
        return self.norm(x)[:, 0]

    def _inputs(self, states: Tensor, previous: Tensor, first: int) -> Tensor:
        places = self.places.weight[first : first + previous.shape[1]]
        return states + self.token_norm(previous + places)
