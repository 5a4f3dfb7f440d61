"""Datasets collected in parallel processes, continued after a kill."""

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gatito.data.chunk import Chunk
from gatito.data.collection import CHUNK, CollectConfig, Collection, collect_chunk, played_seeds
from gatito.data.engine import Outcome, ray_engine
from gatito.data.minari_arrow import EncodedEpisode
from gatito.data.publish import check_writable
from gatito.data.tasks import TaskSpec, get_task
from gatito.errors import UserError

REPORT_S = 0.2
"""Seconds between two reports of a worker's progress."""


def collect(
    tasks: Sequence[str | TaskSpec], root: Path, config: CollectConfig, counts: Mapping[str, int] | None = None
) -> list[Path]:
    """Collect several tasks with one progress bar over all episodes; with one process, in this one.

    `counts` overrides the number of episodes of some tasks. Finished datasets and episodes of the same settings are
    kept, so that the same call continues a run that was killed. Same seeds, same episodes, whatever the processes.
    """
    specs = [task if isinstance(task, TaskSpec) else get_task(task) for task in tasks]
    collections = []
    for spec in specs:
        if [other.id for other in specs].count(spec.id) > 1:
            raise UserError(f"task {spec.id!r} is listed twice; raise the number of its episodes instead")
        own = dataclasses.replace(config, episodes=(counts or {}).get(spec.id, config.episodes))
        collections.append(Collection(spec=spec, root=root, config=own))
    check_writable(root)
    left = [collection for collection in collections if not collection.is_finished()]
    with contextlib.ExitStack() as stack:
        for collection in left:
            stack.enter_context(collection.held())
        left = [
            collection for collection in left if not collection.is_finished()
        ]  # the last holder may have put it together
        with tqdm(total=sum(c.config.episodes for c in left), desc="collect", unit="episode") as bar:
            bar.update(sum(c.num_found() for c in left))
            named = {spec.id: task for spec, task in zip(specs, tasks, strict=True)}
            if left and config.engine == "ray":
                _on_ray(left, named, config.processes, bar)
            elif config.processes == 1:
                _here(left, bar)
            elif left:
                _in_processes(left, named, config.processes, bar)
    return [collection.target for collection in collections]


def _in_processes(
    collections: Sequence[Collection], named: Mapping[str, str | TaskSpec], processes: int, bar: Any
) -> None:
    context = multiprocessing.get_context("spawn")
    ticks = context.Queue()
    chunks = sum(-(-collection.config.episodes // CHUNK) for collection in collections)
    with ProcessPoolExecutor(min(processes, chunks), context, _begin_worker, (ticks,)) as pool:
        running: dict[Future[None], Collection] = {}

        def submit(collection: Collection) -> None:
            """Start what is left of a collection, or put it together."""
            for seeds in collection.advance():
                job = (named[collection.spec.id], collection.root, collection.config, seeds)
                running[pool.submit(_collect_in_worker, *job)] = collection

        failed: dict[str, UserError] = {}
        try:
            for collection in collections:
                _attempt(collection, submit, failed)
            while running:
                with contextlib.suppress(queue.Empty):
                    bar.update(ticks.get(timeout=REPORT_S))
                for future in [future for future in running if future.done()]:
                    collection = running.pop(future)
                    _attempt(collection, partial(_result, future), failed)
                    if collection not in running.values() and collection.spec.id not in failed:
                        _attempt(collection, submit, failed)
            while not ticks.empty():
                bar.update(ticks.get())
        except BrokenProcessPool:
            raise UserError(
                "a collecting process died; finished episodes are kept, the same command continues"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    _raise(failed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ChunkJob:
    """Seeds for a worker that shares no disk with this process."""

    task: str | TaskSpec
    config: CollectConfig
    chunk: Chunk
    seeds: range
    """Those of the chunk that are left."""


def _play_on_ray(job: _ChunkJob) -> list[tuple[int, EncodedEpisode | str]]:
    return list(played_seeds(_task_of(job.task), job.config, job.seeds))


def _on_ray(collections: Sequence[Collection], named: Mapping[str, str | TaskSpec], processes: int, bar: Any) -> None:
    """Let Ray play chunks, and keep what comes back: only this process writes."""
    by_chunks = {collection.chunks: collection for collection in collections}
    failed: dict[str, UserError] = {}
    with ray_engine(processes) as engine:
        while jobs := list(_jobs_left(collections, named, failed)):
            for outcome in engine.run(_play_on_ray, jobs):
                collection = by_chunks[outcome.job.chunk.path.parent]
                _attempt(collection, partial(_keep, outcome, bar), failed)
    _raise(failed)


def _jobs_left(
    collections: Sequence[Collection], named: Mapping[str, str | TaskSpec], failed: dict[str, UserError]
) -> Iterator[_ChunkJob]:
    """Yield what is left of the collections; those of which nothing is are put together."""
    for collection in collections:
        left: list[range] = []
        if collection.spec.id not in failed and not collection.target.exists():
            _attempt(collection, partial(_add_left, left), failed)
        for chunk in map(collection.chunk, left):
            with chunk.continued() as writer:
                seeds = writer.seeds
            yield _ChunkJob(task=named[collection.spec.id], config=collection.config, chunk=chunk, seeds=seeds)


def _add_left(left: list[range], collection: Collection) -> None:
    left += collection.advance()


def _keep(outcome: Outcome[_ChunkJob, list[tuple[int, EncodedEpisode | str]]], bar: Any, _: Collection) -> None:
    """Write what came back to its chunk; raises the `UserError` of a job that failed."""
    played = outcome.value()
    with outcome.job.chunk.continued() as writer:
        for seed, episode in played:
            writer.add(seed, episode)
    bar.update(sum(isinstance(episode, EncodedEpisode) for _, episode in played))


def _here(collections: Sequence[Collection], bar: Any) -> None:
    def all_of_it(collection: Collection) -> None:
        while left := collection.advance():
            for seeds in left:
                collect_chunk(collection.spec, collection.root, collection.config, seeds, bar.update)

    failed: dict[str, UserError] = {}
    for collection in collections:
        _attempt(collection, all_of_it, failed)
    _raise(failed)


def _result(future: Future[None], _: Collection) -> None:
    future.result()


def _attempt(collection: Collection, work: Callable[[Collection], None], failed: dict[str, UserError]) -> None:
    """Do something for a task; where it fails the others go on."""
    try:
        work(collection)
    except UserError as error:
        failed.setdefault(collection.spec.id, error)


def _raise(failed: Mapping[str, UserError]) -> None:
    """Raise the first failure, once all else is done."""
    if failed:
        first, *others = failed.values()
        more = f"; {len(others)} more tasks failed: {', '.join(list(failed)[1:])}" if others else ""
        raise UserError(f"{first}{more}") from first


def end_with_parent() -> None:
    """End this worker when the process that started it ends, be it by kill -9."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_unpickled: dict[str, TaskSpec] = {}
"""Tasks that came as values: every job brings a copy of its own, and the environment is kept for the first."""


_ticks: Any = None
"""Where this worker counts its episodes."""


def _begin_worker(ticks: Any) -> None:
    global _ticks
    _ticks = ticks
    end_with_parent()


def _collect_in_worker(task: str | TaskSpec, root: Path, config: CollectConfig, seeds: range) -> None:
    with _reports(_ticks) as tick:
        collect_chunk(_task_of(task), root, config, seeds, tick)


def _task_of(task: str | TaskSpec) -> TaskSpec:
    return _unpickled.setdefault(task.id, task) if isinstance(task, TaskSpec) else get_task(task)


@contextlib.contextmanager
def _reports(ticks: Any) -> Iterator[Callable[[], None]]:
    """Yield a function that counts, and sends the count now and then."""
    counted, sent = 0, time.monotonic()

    def tick() -> None:
        nonlocal counted, sent
        counted += 1
        if time.monotonic() - sent > REPORT_S:
            ticks.put(counted)
            counted, sent = 0, time.monotonic()

    yield tick
    if counted:
        ticks.put(counted)
