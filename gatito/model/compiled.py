"""The trunk's step through torch's compiler, on few static shapes: on CUDA it is recorded as graphs."""

from typing import Any

import torch
from torch import Tensor

from gatito.model.cache import SessionCache
from gatito.model.modeling import GatitoModel

WIDEST = 64
"""Positions of a call; wider ones, a prompt or a window that is fed anew, have work enough to do without."""


def padded_width(width: int) -> int:
    """The next power of two: each width is compiled once."""
    return 1 << (width - 1).bit_length()


class CompiledTrunk:
    """`GatitoModel.forward` of all sessions at once, those that wait being padding."""

    def __init__(self, model: GatitoModel, cache: SessionCache) -> None:
        """Compiles nothing yet: each width is compiled when it first occurs."""
        self.on_cuda = cache.keys[0].is_cuda
        self._cache = cache
        if self.on_cuda:
            for buffer in (*cache.keys, *cache.values):  # else a graph would copy them in and out
                torch._dynamo.mark_static_address(buffer)
        mode = "reduce-overhead" if self.on_cuda else None
        self._forward: Any = torch.compile(model, dynamic=False, mode=mode)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Map embedded tokens (N, q, D) at positions (N, q) to hidden states (N, q, D), which last until the next
        call."""
        mask = self._cache.begin_static(positions)
        if self.on_cuda:
            torch.compiler.cudagraph_mark_step_begin()
        hidden: Tensor = self._forward(x, positions, mask, self._cache)
        return hidden
