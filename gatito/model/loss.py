"""The loss: next-token cross-entropy at target positions, where alone logits are computed."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

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


def predicting(loss_mask: Tensor, segments: Tensor) -> Tensor:
    """Positions (B, L - 1) whose next token is a target of the same segment; masks are (B, L)."""
    return loss_mask[:, 1:] & (segments[:, 1:] == segments[:, :-1])


def target_loss(states: Tensor, targets: Tensor, head: Tensor, vocabulary: Vocabulary, over: str) -> TargetLoss:
    """Cross-entropy of states (N, D) against the ids (N,) that they predict.

    A target's probability is taken over the ids of its own group (`over="group"`: 1024 bins instead of 34 112
    ids) or over all of them (`over="full"`). `head` is (V, D).
    """
    loss_sum, num_targets, num_correct = {}, {}, {}
    # One split, whose gradient is one concatenation; a slice per group would each fill a (V, D) gradient.
    sizes = [stop - start for start, stop in vocabulary.groups.values()]
    pieces = head.split([*sizes, len(head) - sum(sizes)])
    for piece, (name, (start, stop)) in zip(pieces, vocabulary.groups.items(), strict=False):
        inside = (targets >= start) & (targets < stop)
        rows, first = (piece, start) if over == "group" else (head, 0)
        logits = states[inside] @ rows.to(states.dtype).T  # (n, ids compared)
        wanted = targets[inside] - first
        loss_sum[name] = F.cross_entropy(logits.float(), wanted, reduction="sum")
        num_targets[name] = inside.sum()
        num_correct[name] = (logits.detach().argmax(-1) == wanted).sum() if len(wanted) else inside.sum()
    return TargetLoss(loss_sum=loss_sum, num_targets=num_targets, num_correct=num_correct)
