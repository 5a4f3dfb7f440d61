"""The transformer block: attention and feed-forward, of the trunk and of the action decoder."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from gatito.model.cache import SessionCache
from gatito.model.configuration import GatitoConfig
from gatito.model.embedding import rotate
from gatito.model.masks import Mask, attend_from_one, attend_in_blocks, faster_from_one


class BranchOut(nn.Linear):
    """The last layer of a residual branch."""


class Attention(nn.Module):
    """Causal multi-head attention, through PyTorch's fused kernels."""

    def __init__(self, config: GatitoConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, (config.num_attention_heads, config.head_dim)
        inner = config.num_attention_heads * config.head_dim
        self.qkv = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.out = BranchOut(inner, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | SessionCache | None,
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D); `mask` is (B, 1, L, S), None for plain causal attention."""
        q, k, v = self.queries_keys_values(x, angles)
        dtype = q.dtype
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
            q = q.to(k.dtype)  # a session's keys and values may be kept in fewer bits
        if isinstance(mask, BlockMask):
            attended = attend_in_blocks(q, k, v, mask)
        elif x.shape[1] == 1 and mask is not None and isinstance(cache, SessionCache) and faster_from_one(q):
            attended = attend_from_one(q, k, v, mask)
        else:
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(attended.to(dtype).transpose(1, 2).flatten(2))

    def queries_keys_values(self, x: Tensor, angles: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, L, head_dim) of (B, L, D), turned by the angles of their positions."""
        B, L, _ = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, *self.heads).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v


class GEGLU(nn.Module):
    """Gated feed-forward: gelu(gate) * value, projected back (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        """Two projections from `width` to `hidden`, one back."""
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.value = nn.Linear(width, hidden, bias=False)
        self.out = BranchOut(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return self.out(F.gelu(self.gate(x)) * self.value(x))


class Block(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each dropped per row with probability `drop_path` in training."""

    def __init__(self, config: GatitoConfig, layer: int, hidden: int | None = None) -> None:
        """Block `layer` of a stack; its feed-forward is `hidden` wide, by default as the configuration says."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = GEGLU(config.hidden_size, hidden or config.intermediate_size)
        self.drop_path = config.drop_path

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        angles: tuple[Tensor, Tensor] | None,
        cache: Cache | SessionCache | None,
    ) -> Tensor:
        """Map (B, L, D) to (B, L, D)."""
        x = x + self._dropped(self.attention(self.attention_norm(x), mask, angles, cache))
        return x + self._dropped(self.feed_forward(self.feed_forward_norm(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        keep = 1.0 - self.drop_path
        kept = torch.empty((len(branch), 1, 1), dtype=branch.dtype, device=branch.device).bernoulli_(keep)
        return branch * kept / keep


class TrunkBlock(Block):
    """A block of the trunk: each forward calls it once, on every process, so that its weights can be gathered for it.

    Those of the action decoder are called once for each length of an action that a batch happens to have.
    """
