"""Linear layers in int8, for acting on a CPU, where one token costs the time to read all weights: a quarter of it.

Weights are rounded once, by output channel, what comes in each time, by token (dynamic quantisation). `torch._int_mm`
is what torchao calls too; torchao itself costs more than it gains at one token a call, and torch's own dynamic
quantisation is deprecated: docs/acting.md has the times.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gatito.errors import UserError
from gatito.model.loss import Head
from gatito.model.modeling import GatitoForCausalLM

LARGEST = 127


class Int8Linear(nn.Module):
    """y = x W^T with W and x rounded to 255 steps, each row of either by its own largest value."""

    weight: Tensor
    """(out, in) int8."""
    scales: Tensor
    """(out,) what a step of each channel is worth."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise a layer without bias."""
        super().__init__()
        assert linear.bias is None
        weight = linear.weight.detach().float()
        scales = _scale(weight)
        self.register_buffer("weight", (weight / scales).round().to(torch.int8))
        self.register_buffer("scales", scales[:, 0])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.flatten(0, -2).float()
        scales = _scale(rows)  # of each row for itself: what else is in the batch changes nothing
        product = torch._int_mm((rows / scales).round().to(torch.int8), self.weight.T)
        y = product.float().mul_(scales).mul_(self.scales)
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def _save_to_state_dict(self, *_: Any) -> None:
        raise UserError("a model with int8 linears is for acting only; save the one that it was made of")


def quantize_int8(model: GatitoForCausalLM) -> GatitoForCausalLM:
    """A model that acts like the given one, which stays as it is, with its linears in int8.

    Embeddings, norms and the head, of which acting reads few rows, are shared with it. Raises `UserError` for a model
    on a GPU.
    """
    if model.device.type != "cpu":
        raise UserError(f"int8 linears are for a CPU, the model is on {model.device}; act without them there")
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    quantized = deepcopy(model, shared)
    for module in list(quantized.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None and not isinstance(child, Head):
                setattr(module, name, Int8Linear(child))
    return quantized.eval()


def _scale(rows: Tensor) -> Tensor:
    """What a step is worth (R, 1) in rows (R, n); never 0, also where all values are."""
    return rows.abs().amax(-1, keepdim=True).clamp_(min=1e-30) / LARGEST
