"""Work handed to a Ray cluster, or to a Ray of this machine alone."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

from gatito.errors import UserError

EngineName = Literal["local", "ray"]
"""Where work is done: by processes of this machine, or by Ray."""

IN_FLIGHT = 2
"""Jobs per CPU that are handed out at a time: what bounds the results that wait in memory."""

RETRIES = 3
"""How often Ray runs a job anew whose worker died."""

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Outcome(Generic[J, R]):
    """How a job ended."""

    job: J
    """What was handed out."""
    result: R | None = None
    """What came back; None where it failed."""
    error: UserError | None = None
    """Why it failed; None where it did not."""

    def value(self) -> R:
        """Return the result, or raise the `UserError`."""
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


class RayEngine:
    """Runs functions as Ray tasks; `ray_engine` opens one."""

    def __init__(self, ray: Any) -> None:
        """Work on the Ray that this process is connected to."""
        self._ray = ray
        self._limit = IN_FLIGHT * max(1, int(ray.cluster_resources().get("CPU", 1)))

    def run(
        self, function: Callable[[J], R], jobs: Iterable[J], *, in_order: bool = False
    ) -> Iterator[Outcome[J, R]]:
        """Yield the outcomes of `function(job)` as they finish, or `in_order`; `jobs` is read as workers become free.

        In order, those that finish early wait, and so many jobs less are handed out.
        A job whose worker died runs again, up to `RETRIES` times. A `UserError` is an outcome and the other jobs go
        on; any other exception is raised. Where the caller stops early, what runs is cancelled.
        """
        task = self._ray.remote(max_retries=RETRIES)(function)
        waiting = iter(jobs)
        running: dict[Any, J] = {}
        try:
            while True:
                for job in islice(waiting, self._limit - len(running)):
                    running[task.remote(job)] = job
                if not running:
                    return
                if in_order:
                    (reference,) = islice(running, 1)
                    self._ray.wait([reference])
                else:
                    (reference,), _ = self._ray.wait(list(running))
                yield self._outcome(reference, running.pop(reference))
        finally:
            for reference in running:
                self._ray.cancel(reference, force=True)

    def _outcome(self, reference: Any, job: J) -> Outcome[J, R]:
        exceptions = self._ray.exceptions
        try:
            return Outcome(job=job, result=self._ray.get(reference))
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                return Outcome(job=job, error=error.cause)
            if isinstance(error.cause, ImportError):
                told = f"a Ray worker cannot import something ({error.cause})"
                return Outcome(job=job, error=UserError(f"{told}; install gatito and its extras on every node"))
            raise
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError):
            died = f"a Ray worker died {RETRIES + 1} times at the same job"
            return Outcome(job=job, error=UserError(f"{died}; what was finished is kept, the same command continues"))


@contextmanager
def ray_engine(processes: int) -> Iterator[RayEngine]:
    """Connect to the cluster of `RAY_ADDRESS`, else start a Ray of `processes` CPUs here, which ends with the block.

    Raises `UserError` where Ray is not installed, or the cluster cannot be reached.
    """
    if processes < 1:
        raise UserError(f"--processes is {processes}, allowed 1 and more")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'gatito[ray]'") from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", num_cpus=processes, include_dashboard=False, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster at RAY_ADDRESS {address!r} ({error}); start it or unset RAY_ADDRESS"
        ) from None
    try:
        yield RayEngine(ray)
    finally:
        ray.shutdown()
