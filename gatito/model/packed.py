"""Linear layers with weights packed once for the CPU's matrix kernel, which otherwise packs them in every call: of a
few tokens that costs as much as the product.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatito.errors import UserError
from gatito.model.blocks import GEGLU
from gatito.model.loss import Head
from gatito.model.modeling import GatitoForCausalLM

TYPICAL = 20
"""Tokens of a call that the packing is for: an observation."""


class ActingLinear(nn.Module):
    """A linear layer that neither learns nor is saved."""

    def _save_to_state_dict(self, *_: Any) -> None:
        raise UserError("a model with packed or int8 linears is for acting only; save the one that it was made of")


class PackedLinear(ActingLinear):
    """y = x W^T, with W twice: in the order in which oneDNN's kernel reads it, and transposed for one token alone."""

    def __init__(self, linear: nn.Linear) -> None:
        """Pack a layer without bias, in float32."""
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL)
        self.transposed = weight.T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        if x.numel() == x.shape[-1]:
            return torch.matmul(x, self.transposed)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")
        return y


class ActingGEGLU(nn.Module):
    """The gated feed-forward with gate and value from one product: a call less, and what comes in is read once."""

    def __init__(self, layer: GEGLU, make: Callable[[nn.Linear], nn.Module]) -> None:
        """Of a layer's weights, each linear made by `make`."""
        super().__init__()
        weight = torch.cat([layer.gate.weight.detach(), layer.value.weight.detach()])
        both = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        both.weight = nn.Parameter(weight, requires_grad=False)
        self.gate_and_value, self.out = make(both), make(layer.out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        y: Tensor = self.out(F.gelu(gate) * value)
        return y


def pack_linears(model: GatitoForCausalLM) -> GatitoForCausalLM:
    """A model that acts like the given one, which stays as it is; its linears take twice their memory more.

    It is the given one where there is nothing to pack for: on a GPU, in other numbers than float32, without oneDNN.
    """
    packs = model.device.type == "cpu" and model.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    return with_linears(model, PackedLinear) if packs else model


def with_linears(model: GatitoForCausalLM, make: Callable[[nn.Linear], nn.Module]) -> GatitoForCausalLM:
    """A copy with other linears in blocks and resampler. The rest is shared with the given model: norms, embeddings,
    and the head, of which acting reads few rows."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = deepcopy(model, shared)
    _replace_linears(copied, make)
    return copied.eval()


def _replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, GEGLU):
            setattr(module, name, ActingGEGLU(child, make))
        elif isinstance(child, nn.Linear) and child.bias is None and not isinstance(child, Head):
            setattr(module, name, make(child))
        else:
            _replace_linears(child, make)
