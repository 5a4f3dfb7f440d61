"""Linear layers in int8, for acting on a CPU, where one token costs the time to read all weights: a quarter of it.

Weights are rounded once, by output channel, what comes in each time, by token (dynamic quantisation). `torch._int_mm`
is what torchao calls too; torchao itself costs more than it gains at one token a call, and torch's own dynamic
quantisation is deprecated: docs/acting.md has the times.
"""

import torch
from torch import Tensor, nn

from gatito.errors import UserError
from gatito.model.modeling import GatitoForCausalLM
from gatito.model.packed import ActingLinear, with_linears

STEPS = 127


class Int8Linear(ActingLinear):
    """y = x W^T with W and x rounded to 127 steps either way of the largest value in each of their rows."""

    weight: Tensor
    """(out, in) int8."""
    scales: Tensor
    """(out,) what a step of each channel times a step of a token's largest value is worth."""

    def __init__(self, linear: nn.Linear) -> None:
        """Quantise a layer without bias."""
        super().__init__()
        weight = linear.weight.detach().float()
        largest = _largest(weight)
        self.register_buffer("weight", (weight * (STEPS / largest)).round_().to(torch.int8))
        self.register_buffer("scales", largest[:, 0] / STEPS**2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.flatten(0, -2).float()
        largest = _largest(rows)  # of each row for itself: what else is in the batch changes nothing
        product = torch._int_mm((rows * (STEPS / largest)).round_().to(torch.int8), self.weight.T)
        y = product * (largest * self.scales)
        return y.view(*x.shape[:-1], -1).to(x.dtype)


def quantize_int8(model: GatitoForCausalLM) -> GatitoForCausalLM:
    """A model that acts like the given one, which stays as it is, with the linears of blocks and resampler in int8.

    Raises `UserError` for a model on a GPU.
    """
    if model.device.type != "cpu":
        raise UserError(f"int8 linears are for a CPU, the model is on {model.device}; act without them there")
    return with_linears(model, Int8Linear)


def _largest(rows: Tensor) -> Tensor:
    """The largest magnitude (R, 1) in rows (R, n); never 0, also where all values are."""
    return torch.linalg.vector_norm(rows, torch.inf, dim=-1, keepdim=True).clamp_(min=1e-30)
