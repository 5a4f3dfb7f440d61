"""What `test_distributed.py` launches in several processes: a training of the toy recipe, with a fault or without.

python -m torch.distributed.run --standalone --nproc-per-node N launched.py STORE OUT FAULT TRAIN_SETTINGS
"""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from toy import tiny_recipe

import gatito.model.loss
from gatito.data.packing import Batch
from gatito.data.sampler import Sampler
from gatito.errors import UserError
from gatito.train import sharding, trainer
from gatito.train.stop import Terminated
from gatito.train.stream import MicroBatches


def shard_on_cpu() -> None:
    """Let Accelerate shard on CPUs too, where it would silently give each process the whole model."""
    begin = trainer.begin_accelerator

    def sharded(*arguments: Any) -> Any:
        accelerator = begin(*arguments)
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharding.shard_plan()
        if accelerator.mixed_precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
        return accelerator

    trainer.begin_accelerator = sharded


def lose_targets() -> None:
    """The second half of the rows of steps 3 and 4, and all rows of step 6, have no targets (batches of 8 rows)."""
    batch = Sampler.batch

    def without(self: Sampler, first: int, size: int) -> Batch:
        found = batch(self, first, size)
        steps, places = np.divmod(np.arange(first, first + size), 8)
        lost = (np.isin(steps, (2, 3)) & (places >= 4)) | (steps == 5)
        return dataclasses.replace(found, loss_mask=found.loss_mask & torch.from_numpy(~lost)[:, None])

    Sampler.batch = without


def break_a_row(steps: tuple[int, ...]) -> None:
    """The loss of one row of the last process is NaN in some steps, counted from 1."""
    original, calls = gatito.model.loss.target_loss, [0]

    def broken(*arguments: Any, **values: Any) -> Any:
        targets = original(*arguments, **values)
        calls[0] += 1
        state = PartialState()
        if calls[0] not in steps or state.process_index != state.num_processes - 1:
            return targets
        row = int(torch.nonzero(targets.row_targets)[-1])
        row_loss = targets.row_loss.clone()
        row_loss[row] = math.nan
        return dataclasses.replace(
            targets, row_loss=row_loss, loss_sum={k: v * math.nan for k, v in targets.loss_sum.items()}
        )

    gatito.model.loss.target_loss = broken


def note_rows(out: Path) -> None:
    """Write down which rows of the stream are trained on."""
    original = MicroBatches.__getitem__

    def noted(self: MicroBatches, k: int) -> Any:
        with (out.parent / f"{out.name}.rows-{self.process}").open("a") as file:
            file.writelines(f"{row}\n" for row in self.rows(k))
        return original(self, k)

    MicroBatches.__getitem__ = noted


def main() -> None:
    store, out, fault, settings = sys.argv[1:5]
    torch.set_num_threads(1)
    note_rows(Path(out))
    faults = {
        "none": lambda: None,
        "sharded": shard_on_cpu,
        "targets": lose_targets,
        "two broken": lambda: break_a_row((3, 4)),
        "three broken": lambda: break_a_row((3, 4, 5)),
    }
    faults[fault]()
    try:
        trainer.train(tiny_recipe(**json.loads(settings)), Path(store), Path(out))
    except UserError as error:
        print(f"process {PartialState().process_index} of {PartialState().num_processes}: {error}", flush=True)
        sys.exit(2)
    except Terminated as end:
        print(end, flush=True)
        sys.exit(143)
    print(f"process {PartialState().process_index} of {PartialState().num_processes} is done", flush=True)


if __name__ == "__main__":
    main()
