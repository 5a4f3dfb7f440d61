"""Ray with one worker against the local engine with one process, at the same job: collecting episodes.

Each job is done at two sizes, in turn; the time that more work takes is the rate, what is left at no work the
start-up, and both say what an hour of the local engine's work takes on Ray. Wall clock; each job is a process:

    python benchmarks/cluster.py            about 6 minutes on two cores
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

TASKS = {"metaworld/plate-slide": "collect, Meta-World", "babyai/pickup-loc": "collect, BabyAI"}
HOUR = 3600.0


def seconds(task: str, episodes: int, engine: str) -> float:
    """Wall time of `gatito data collect` by one process or worker."""
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "gatito", "data", "collect", "--tasks", task, "--episodes", str(episodes)]
        command += ["--processes", "1", "--engine", engine, "--out", place]
        began = time.monotonic()
        subprocess.run(command, check=True, capture_output=True, env=environment)
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, nargs=2, default=[50, 300], help="the two sizes of a job")
    arguments = parser.parse_args()
    few, many = arguments.episodes
    spent: dict[tuple[str, str, int], list[float]] = {}
    keys = [(task, engine, size) for task in TASKS for size in (few, many) for engine in ("local", "ray")]
    for key in tqdm(keys * arguments.rounds, desc="jobs", unit="job"):
        spent.setdefault(key, []).append(seconds(key[0], key[2], key[1]))
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {few} and {many} episodes, wall clock"
    )
    print("\n| job | episodes/s, local | Ray, one worker | ratio | start-up, local | Ray | an hour's job |")
    print("|---|---|---|---|---|---|---|")
    for task, words in TASKS.items():
        rates, starts = {}, {}
        for engine in ("local", "ray"):
            small, large = (statistics.median(spent[task, engine, size]) for size in (few, many))
            rates[engine] = (many - few) / (large - small)
            starts[engine] = small - few / rates[engine]
        work = (HOUR - starts["local"]) * rates["local"]
        hour = HOUR / (starts["ray"] + work / rates["ray"])
        print(
            f"| {words} | {rates['local']:.1f} | {rates['ray']:.1f} | {rates['ray'] / rates['local']:.2f} | "
            f"{starts['local']:.1f} s | {starts['ray']:.1f} s | {hour:.2f} |"
        )


if __name__ == "__main__":
    main()
