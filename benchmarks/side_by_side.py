"""Runs of equal minutes on equal cores: two processes at a time, of one thread each."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

Job = tuple[str, int]
"""Variant and seed."""


def run_jobs(folders: Mapping[Job, Path]) -> None:
    """Call this program again with `--one VARIANT SEED --out FOLDER` for every job that has no `result.json` yet."""
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
