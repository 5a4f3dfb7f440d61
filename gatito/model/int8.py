"""Linear layers in int8, for acting on a CPU, where one token costs the time to read all weights: a quarter of it.

Weights are rounded once, by output channel, what comes in each time, by token (dynamic quantisation). torchao
costs more than it gains at one token a call, and torch's own dynamic quantisation is deprecated; called here are the
kernels that torchao and torch's compiler call: docs/acting.md has the times.
"""

import torch
from torch import Tensor, nn

from gatito.errors import UserError
from gatito.model.modeling import GatitoForCausalLM
from gatito.model.packed import ActingLinear, with_linears

STEPS = 127
MANY, WIDE = 4, 2048
"""Tokens of a call, and channels that come out, from which on a product with packed weights is faster; it costs more
to begin."""


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
        self.register_buffer("zeros", torch.zeros(len(weight), dtype=torch.int64))
        self.packed = torch.ops.onednn.qlinear_prepack(self.weight, None) if _packs() else None
        self.wide = len(weight) >= WIDE

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        rows = x.flatten(0, -2).float()
        largest = _largest(rows)  # of each row for itself: what else is in the batch changes nothing
        steps = (rows * (STEPS / largest)).round_()
        if self.packed is not None and (self.wide or len(rows) >= MANY):
            y = self._product(steps)
        else:
            y = torch._int_mm(steps.to(torch.int8), self.weight.T) * self.scales
        return y.mul_(largest).view(*x.shape[:-1], -1).to(x.dtype)

    def _product(self, steps: Tensor) -> Tensor:
        """The same of many rows (R, in), by the kernel for packed weights, which takes bytes above 0."""
        given = (steps.add_(STEPS + 1).to(torch.uint8), 1.0, STEPS + 1)  # with their scale and what stands for 0
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            *given, self.packed, self.scales, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return y


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


def _packs() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_prepack")
