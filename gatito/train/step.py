"""One optimizer step over all processes and micro-batches."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from gatito.data.packing import Batch
from gatito.model.loss import predicting
from gatito.tokenizers import Vocabulary
from gatito.train.sharding import is_sharded, whole


@dataclass(frozen=True, kw_only=True, eq=False)
class StepResult:
    """What became of a step, of all processes together."""

    loss: float
    """Mean cross-entropy of the targets, in nats."""
    grad_norm: float
    """Before clipping."""
    groups: dict[str, tuple[float, int, int]]
    """Id group to summed loss, targets and hits."""
    row_loss: NDArray[np.float64]
    """(batch,) summed loss of each row of the step."""
    row_targets: NDArray[np.int64]
    """(batch,) targets of each row."""
    tokens: int
    """Tokens in all."""
    timesteps: int
    """Timesteps of episodes."""

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are; where not, the step was skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def is_skipped(self) -> bool:
        """Whether the weights were left alone: not finite, or without any target."""
        return not self.is_finite or not self.row_targets.any()

    @property
    def not_finite(self) -> NDArray[np.int64]:
        """Which rows have a loss that is not finite."""
        return np.flatnonzero(~np.isfinite(self.row_loss))


def optimizer_step(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: Any,
    batches: Sequence[Batch],
    vocabulary: Vocabulary,
    *,
    rate: float,
    clip: float,
) -> StepResult:
    """One step on the micro-batches of this process, which are on the CPU and moved to its device one by one.

    The loss is normalised by the number of targets of all processes and micro-batches, so that neither changes what
    is learned: a mean of their means would weigh a target by how few others its batch has. Where loss or gradient are
    not finite, or there is no target, all processes leave the weights alone.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    count = torch.stack([_num_targets(batch) for batch in batches]).sum()
    all_targets = accelerator.reduce(count.to(accelerator.device), "sum")
    counts = _Counts(accelerator, list(vocabulary.groups), batches)
    for i, batch in enumerate(batches):
        last = i == len(batches) - 1
        with accelerator.autocast(), _synchronised(accelerator, model, last):
            targets = model(**batch.to(accelerator.device).tensors()).targets
            loss = torch.stack(list(targets.loss_sum.values())).sum() / all_targets.clamp(min=1)
            # Data-parallel gradients are averaged over the processes; the loss is a sum over them.
            accelerator.backward(loss * accelerator.num_processes)
        counts.add(i, loss, targets, batch, vocabulary.separator)
    norm = whole(accelerator.clip_grad_norm_(model.parameters(), clip))
    result = counts.result(float(norm))
    if not result.is_skipped:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return result


class _Counts:
    """Sums over the micro-batches of this process, then over all processes in one exchange."""

    def __init__(self, accelerator: Accelerator, groups: Sequence[str], batches: Sequence[Batch]) -> None:
        self.accelerator, self.groups, self.micro = accelerator, groups, len(batches)
        self.B, device = len(batches[0].input_ids), accelerator.device
        self.loss = torch.zeros((), device=device)
        self.by_group = torch.zeros((3, len(groups)), device=device)
        # A place for each row of the step: its micro-batch, process and place in there.
        self.rows = torch.zeros((2, self.micro, accelerator.num_processes, self.B), device=device)
        self.tokens = self.timesteps = 0

    def add(self, micro: int, loss: Tensor, targets: Any, batch: Batch, separator: int) -> None:
        self.loss = self.loss + loss.detach()
        kinds = (targets.loss_sum, targets.num_targets, targets.num_correct)
        self.by_group += torch.stack([torch.stack([kind[name].detach() for name in self.groups]) for kind in kinds])
        own = (slice(None), micro, self.accelerator.process_index)
        self.rows[own] = torch.stack([targets.row_loss, targets.row_targets.to(targets.row_loss.dtype)])
        self.tokens += batch.num_tokens
        self.timesteps += batch.num_timesteps(separator)

    def result(self, grad_norm: float) -> StepResult:
        sizes = torch.tensor([self.tokens, self.timesteps], dtype=torch.float32, device=self.loss.device)
        own = torch.cat([self.loss[None], self.by_group.flatten(), self.rows.flatten(), sizes])
        values: NDArray[np.float64] = self.accelerator.reduce(own, "sum").double().cpu().numpy()
        loss, by_group, rows, counted = np.split(values, np.cumsum([1, self.by_group.numel(), self.rows.numel()]))
        row_loss, row_targets = rows.reshape(2, -1)
        sums, targets, hits = by_group.reshape(3, -1)
        return StepResult(
            loss=float(loss[0]),
            grad_norm=grad_norm,
            groups={name: (float(sums[i]), int(targets[i]), int(hits[i])) for i, name in enumerate(self.groups)},
            row_loss=row_loss,
            row_targets=row_targets.astype(np.int64),
            tokens=int(counted[0]),
            timesteps=int(counted[1]),
        )


def _num_targets(batch: Batch) -> Tensor:
    count = predicting(batch.loss_mask, batch.segments).sum()
    return count if batch.action_targets is None else count + batch.action_targets.sum()


def _synchronised(accelerator: Accelerator, model: torch.nn.Module, last: bool) -> Any:
    """Gradients are exchanged between processes with the last micro-batch only; sharded ones with each, since they
    would have to be kept whole until then."""
    return contextlib.nullcontext() if last or is_sharded(accelerator) else accelerator.no_sync(model)
