"""The loss: next-token cross-entropy at target positions, where alone logits are computed."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gatito.tokenizers import Vocabulary


@dataclass(frozen=True, kw_only=True)
class TargetLoss:
    """Summed loss, number of targets and number of correct predictions, by id group."""

    loss_sum: dict[str, Tensor]
    """Group to summed cross-entropy, in nats."""
    num_targets: dict[str, Tensor]
    """Group to number of targets."""
    num_correct: dict[str, Tensor]
    """Group to number of targets that the model ranks first."""
    row_loss: Tensor
    """(B,) summed cross-entropy by row, without gradient."""
    row_targets: Tensor
    """(B,) number of targets by row."""


def predicting(loss_mask: Tensor, segments: Tensor) -> Tensor:
    """Positions (B, L - 1) whose next token is a target of the same segment; masks are (B, L)."""
    return loss_mask[:, 1:] & (segments[:, 1:] == segments[:, :-1])


class Head(nn.Linear):
    """Hidden states to logits over all ids, or, at targets, to their loss.

    The loss is computed inside of this module, so that what shards its weight knows when they are needed.
    """

    def forward(  # type: ignore[override]
        self, states: Tensor, wanted: Tensor | None = None, **values: Any
    ) -> Tensor | TargetLoss:
        """States (..., D) to logits (..., V); with the ids `wanted` (N,) see `target_loss`."""
        if wanted is None:
            return F.linear(states, self.weight)
        return target_loss(states, wanted, self.weight, **values)


def target_loss(
    states: Tensor,
    targets: Tensor,
    head: Tensor,
    *,
    vocabulary: Vocabulary,
    over: str,
    rows: Tensor,
    num_rows: int,
    spread: float = 0.0,
) -> TargetLoss:
    """Cross-entropy of states (N, D), of the rows (N,) of a batch, against the ids (N,) that they predict.

    A target's probability is taken over the ids of its own group (`over="group"`: 1024 bins instead of 34 112
    ids) or over all of them (`over="full"`). `head` is (V, D). `spread` is that of continuous targets, see
    `spread_cross_entropy`.
    """
    loss_sum, num_targets, num_correct = {}, {}, {}
    row_loss = torch.zeros(num_rows, device=states.device)
    head = head.to(states.dtype)  # once, in mixed precision
    # One split, whose gradient is one concatenation; a slice per group would each fill a (V, D) gradient.
    sizes = [stop - start for start, stop in vocabulary.groups.values()]
    pieces = head.split([*sizes, len(head) - sum(sizes)])
    for piece, (name, (start, stop)) in zip(pieces, vocabulary.groups.items(), strict=False):
        inside = (targets >= start) & (targets < stop)
        compared, first = (piece, start) if over == "group" else (head, 0)
        logits = states[inside] @ compared.T  # (n, ids compared)
        wanted = targets[inside] - first
        if spread and name == "continuous":
            losses = spread_cross_entropy(logits.float(), wanted, spread, (start - first, stop - first))  # (n,)
        else:
            losses = F.cross_entropy(logits.float(), wanted, reduction="none")  # (n,)
        loss_sum[name] = losses.sum()
        row_loss = row_loss.index_add(0, rows[inside], losses.detach().float())
        num_targets[name] = inside.sum()
        num_correct[name] = (logits.detach().argmax(-1) == wanted).sum() if len(wanted) else inside.sum()
    return TargetLoss(
        loss_sum=loss_sum,
        num_targets=num_targets,
        num_correct=num_correct,
        row_loss=row_loss,
        row_targets=torch.bincount(rows, minlength=num_rows),
    )


def spread_cross_entropy(logits: Tensor, wanted: Tensor, spread: float, bins: tuple[int, int]) -> Tensor:
    """Cross-entropy (n,) of logits (n, V) against bins (n,) whose probability is spread over those near them.

    The weights are a Gaussian's of standard deviation `spread`, in bins, cut at three of them and at the ends of
    `bins`, [start, stop) (Imani and White 2018, Farebrother et al. 2024): nearly right is not wrong.
    """
    reach = math.ceil(3 * spread)
    offsets = torch.arange(-reach, reach + 1, device=wanted.device)
    ids = wanted[:, None] + offsets  # (n, K)
    inside = (ids >= bins[0]) & (ids < bins[1])
    weights = torch.exp(-0.5 * (offsets / spread) ** 2) * inside
    chosen = F.log_softmax(logits, dim=-1).gather(1, ids.clamp(bins[0], bins[1] - 1))
    return -(weights * chosen).sum(1) / weights.sum(1)
