"""The stream of a run: which rows make which micro-batch of which process, and how they are loaded."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from gatito.data.packing import Batch
from gatito.data.sampler import Sampler
from gatito.data.store import Store
from gatito.errors import UserError
from gatito.tokenizers.trunk import Trunk
from gatito.train.configs import TrainConfig

Arrays = dict[str, NDArray[Any]]


def stream_of(store: Store, trunk: Trunk, config: TrainConfig) -> Sampler:
    """The stream of rows that a run is trained on."""
    return Sampler(
        store=store,
        context=config.context,
        trunk=trunk,
        seed=config.seed,
        prompt_share=config.prompt_share,
        predict_observations=config.predict_observations,
    )


class MicroBatches(Dataset[Arrays]):
    """Micro-batch k of one process: rows of the stream that no other process or step has.

    Row i of the stream is a function of the seed and i alone, and step s takes rows [s * batch, (s + 1) * batch): so
    neither the number of processes, nor of workers, nor an interruption changes what is trained on.
    """

    def __init__(self, sampler: Sampler, config: TrainConfig, process: int, processes: int) -> None:
        """Process `process` of `processes` takes its share of each step's rows."""
        self.sampler, self.config, self.process = sampler, config, process
        self.size = config.batch // config.accumulation // processes

    def __len__(self) -> int:
        return self.config.steps * self.config.accumulation

    def rows(self, k: int) -> range:
        """Rows of the stream that are micro-batch k."""
        step, micro = divmod(k, self.config.accumulation)
        rows_per_micro = self.config.batch // self.config.accumulation
        first = step * self.config.batch + micro * rows_per_micro + self.process * self.size
        return range(first, first + self.size)

    def __getitem__(self, k: int) -> Arrays:
        """Fields of the batch by name.

        Arrays, which workers send through their pipe: tensors would wait in shared memory for the main process to
        fetch them of a worker that may be dead by then.
        """
        rows = self.rows(k)
        return {name: t.numpy() for name, t in self.sampler.batch(rows.start, len(rows)).tensors().items()}


def loader(dataset: MicroBatches, first_step: int, device: torch.device) -> Iterator[Batch]:
    """Yield the micro-batches from a step on, prepared by worker processes while the step before is computed."""
    config = dataset.config
    arrays = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(first_step * config.accumulation, len(dataset)),
        num_workers=config.workers,
        collate_fn=_as_they_are,  # type: ignore[arg-type]
        generator=torch.Generator(),
        worker_init_fn=_begin_worker,
    )
    for found in arrays:
        batch = Batch(**{name: torch.from_numpy(array) for name, array in found.items()})
        yield batch.pinned() if device.type == "cuda" else batch


def _as_they_are(arrays: Arrays) -> Arrays:
    return arrays


def _begin_worker(_: int) -> None:
    """A worker leaves SIGTERM to the main process, which saves and then ends its workers."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def lost_workers_named() -> Iterator[None]:
    """Turn what torch says of a killed data-loading worker into a `UserError` that names it."""
    try:
        yield
    except RuntimeError as error:
        lost = re.match(r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\)", str(error))
        if lost is None:
            raise
        raise UserError(
            f"the data-loading worker of process id {lost.group(1)} died ({error}); continue the run with "
            "--train.resume auto, and lower --train.workers if memory was short"
        ) from None
