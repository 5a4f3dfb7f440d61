"""What is compared is measured side by side: in turn in one process, or in two processes of one thread each."""

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

Job = tuple[str, int]
"""Variant and seed."""
Step = Callable[[], float]
"""Does a piece of work; returns how much of it per second."""


def measured(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Median rate of each, after a round of warm-up, all of them in every round."""
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name, step in steps.items():
            rate = step()
            if i:
                rates[name].append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def run_jobs(folders: Mapping[Job, Path]) -> None:
    """Call this program again, twice at a time, with `--one VARIANT SEED --out FOLDER` for every job that has no
    `result.json` yet."""
    waiting = [job for job, folder in folders.items() if not (folder / "result.json").is_file()]
    while waiting:
        pair, waiting = waiting[:2], waiting[2:]
        commands = [
            [*[sys.executable, *sys.argv], "--one", job[0], str(job[1]), "--out", str(folders[job])] for job in pair
        ]
        running = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}) for command in commands]
        codes = [process.wait() for process in running]
        if any(codes):
            sys.exit("a variant failed")


def folder_name(job: Job) -> str:
    """The folder of a job, out of its variant and seed."""
    return f"{job[0].replace(' ', '-').replace(',', '')}-{job[1]}"
