"""Who sees whom: attention masks of packed, padded and cached rows, and the positions that go with them."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

# Where there is no GPU torch's compiler need not be imported, which takes a second.
_flex = torch.compile(flex_attention, dynamic=False) if torch.cuda.is_available() else flex_attention
Mask = Tensor | BlockMask | None
"""True where a query sees a key, in numbers 0 and elsewhere minus infinity; None is plain causal attention."""


def counted_positions(attention_mask: Tensor | None, B: int, L: int, past: int, device: torch.device) -> Tensor:
    """Positions (B, L) counted from each row's first token that is no padding."""
    if attention_mask is None:
        return torch.arange(past, past + L, device=device).expand(B, L)
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -L:]


def visible(
    segments: Tensor | None,
    attention_mask: Tensor | None,
    L: int,
    past: int,
    device: torch.device,
    flex: bool = False,
) -> Mask:
    """Who sees whom, (B, 1, L, past + L): the past of the same segment. None means plain causal attention.

    segments 1 1 2 2    1 . . .
                        1 1 . .
                        . . 2 .
                        . . 2 2

    With `flex` segments become a mask of blocks, of which those between segments cost no attention.
    """
    if segments is None and attention_mask is None and past == 0:
        return None
    if segments is not None and flex:
        return segment_blocks(segments)
    causal = torch.ones(L, past + L, dtype=torch.bool, device=device).tril(past)
    if segments is not None:
        return (causal & (segments[:, :, None] == segments[:, None, :]))[:, None]
    if attention_mask is None:
        return causal[None, None]
    # A padded query sees itself, so that no row of the softmax is empty.
    own = torch.eye(past + L, dtype=torch.bool, device=device)[past:]
    return ((causal & attention_mask.bool()[:, None, :]) | own)[:, None]


def segment_blocks(segments: Tensor) -> BlockMask:
    """The mask of segments (B, L) for `flex_attention`."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (segments[row, query] == segments[row, key])

    B, L = segments.shape
    return create_block_mask(sees, B, None, L, L, device=segments.device)


def attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Attention (B, H, L, head_dim) under a mask of blocks; by a compiled kernel where there is a GPU."""
    attended: Tensor = _flex(q, k, v, block_mask=mask)
    return attended


def faster_from_one(q: Tensor) -> bool:
    """Whether `attend_from_one` is faster than the fused kernel: on a CPU, in float32."""
    return q.device.type == "cpu" and q.dtype == torch.float32


def attend_from_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of a single query a row (B, H, 1, head_dim) to keys and values (B, H, S, head_dim), mask in numbers.

    On a CPU two products take 0.8 to 0.9 of the time of the fused kernel, which is made for blocks of queries.
    """
    scores = torch.matmul(q, k.transpose(-1, -2)).mul_(q.shape[-1] ** -0.5).add_(mask)  # (B, H, 1, S)
    return torch.matmul(scores.softmax(-1), v)
