"""A policy server under load: many sessions against one, and an hour of it.

`gatito serve` in a process of its own, on one thread, with the recipe `demo` and random weights (17 values observed,
6 acted by); its clients in this one. 1, 16 and 64 sessions in turn, each asking again as soon as it is answered. Or,
with `--soak`, 16 sessions at a rate that connect anew every 500 steps, and what the server holds minute by minute:

    python benchmarks/serving.py
    python benchmarks/serving.py --soak 60 --hz 5
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from gymnasium import spaces
from tqdm import tqdm
from websockets.asyncio.client import connect

from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.recipes import load_recipe
from gatito.serve.wire import pack, unpack
from gatito.tokenizers import Layout, TextTokenizer, Vocabulary

COUNTS = (1, 16, 64)
SOAKED = 16
"""Sessions of a soak."""
STEPS = 500
"""After which they connect anew."""


def write_checkpoint(folder: Path) -> None:
    """The recipe `demo` with random weights, for one task."""
    text, recipe = TextTokenizer.load(), load_recipe("demo")
    vocabulary = Vocabulary(text_size=text.size)
    model = GatitoForCausalLM(recipe.model.build(vocabulary, recipe.train.context, end_id=text.end))
    space = spaces.Box(-np.inf, np.inf, (17,)), spaces.Box(-1, 1, (6,))
    layout = Layout.from_spaces(*space, vocabulary=vocabulary, text=text)
    model.save_pretrained(folder)
    GatitoProcessor(model.config.trunk, text, {"benchmark/robot": layout}).save_pretrained(folder)


@contextmanager
def served(sessions: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a server, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        command = [sys.executable, "-m", "gatito", "serve", folder, "--port", "0", "--sessions", str(sessions)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None
            try:
                yield server.stdout.readline().partition(": ")[0], psutil.Process(server.pid)
            finally:
                server.terminate()


@dataclass
class Load:
    """What sessions measured together."""

    seconds: list[list[float]] = field(default_factory=list)
    """Latency of each step of each session."""

    @property
    def all(self) -> np.ndarray:
        """Latencies of all sessions."""
        return np.concatenate([np.array(own) for own in self.seconds])

    @property
    def steps(self) -> list[int]:
        """Of each session."""
        return [len(own) for own in self.seconds]


async def session(uri: str, end: float, load: Load, steps: int | None, period: float) -> None:
    """Ask and ask again until a time, with a new connection after so many steps; at most once a period."""
    load.seconds.append(own := [])
    rng = np.random.default_rng(len(load.seconds))
    while time.monotonic() < end:
        async with connect(uri, compression=None) as socket:
            await socket.recv()
            done = 0
            while time.monotonic() < end and done != steps:
                began = time.monotonic()
                await socket.send(pack({"observation": rng.normal(size=17)}))
                answer = await socket.recv()
                own.append(time.monotonic() - began)
                done += 1
                assert isinstance(answer, bytes), answer
                assert unpack(answer)["actions"].shape == (1, 6)
                await asyncio.sleep(max(0.0, began + period - time.monotonic()))


async def loaded(uri: str, count: int, seconds: float, steps: int | None = None, period: float = 0.0) -> Load:
    """So many sessions at a time."""
    load = Load()
    end = time.monotonic() + seconds
    await asyncio.gather(*(session(uri, end, load, steps, period) for _ in range(count)))
    return load


def compare(rounds: int, seconds: float) -> None:
    """Print the table of many sessions against one."""
    found: dict[int, list[Load]] = {count: [] for count in COUNTS}
    with served(max(COUNTS)) as (uri, _):
        asyncio.run(loaded(uri, max(COUNTS), 2.0))
        for count in tqdm([*COUNTS] * rounds, desc="loads", unit="load"):
            found[count].append(asyncio.run(loaded(uri, count, seconds)))
    print("| sessions | steps/s | against one | p50 | p95 | p99 | slowest / median session |\n" + "|---" * 7 + "|")
    rates = {count: statistics.median(sum(load.steps) / seconds for load in loads) for count, loads in found.items()}
    for count, loads in found.items():
        latencies = 1000 * np.concatenate([load.all for load in loads])
        p50, p95, p99 = np.quantile(latencies, [0.5, 0.95, 0.99])
        slowest = min(min(load.steps) / statistics.median(load.steps) for load in loads)
        print(
            f"| {count} | {rates[count]:.0f} | {rates[count] / rates[1]:.1f} | {p50:.1f} ms | {p95:.1f} ms | "
            f"{p99:.1f} ms | {slowest:.2f} |"
        )


def soak(minutes: int, hz: float) -> None:
    """Print what the server holds, minute by minute."""
    with served(2 * SOAKED) as (uri, process):
        print("| minute | steps/s | p99 | resident | file descriptors | threads |\n|---|---|---|---|---|---|")
        for minute in range(1, minutes + 1):
            load = asyncio.run(loaded(uri, SOAKED, 60.0, STEPS, 1 / hz))
            print(
                f"| {minute} | {sum(load.steps) / 60:.0f} | {1000 * np.quantile(load.all, 0.99):.1f} ms | "
                f"{process.memory_info().rss / 1e6:.1f} MB | {process.num_fds()} | {process.num_threads()} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--soak", type=int, metavar="MINUTES", help="instead")
    parser.add_argument("--hz", type=float, default=5.0, help="of each session of a soak")
    arguments = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, server and clients together")
    if arguments.soak:
        soak(arguments.soak, arguments.hz)
    else:
        compare(arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
