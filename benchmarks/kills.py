"""A run that is killed with -9 at random instants and continued, beside the same run left alone.

Both are `gatito train` on one thread, side by side. At the end every logged loss, norm and rate and every byte of
weights and optimizer state are compared; the program says where each continuation began, and fails where anything
differs.

    python benchmarks/kills.py --store hundred-store --steps 4500 --kills 5 --out runs/kills
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

from gatito.data.store import sha256_of
from gatito.train.checkpoint import list_checkpoints, step_of
from gatito.train.watch import TIMINGS


def begin(arguments: argparse.Namespace, out: Path) -> subprocess.Popen[bytes]:
    settings = {"steps": arguments.steps, "save_every": arguments.save_every, "resume": "auto", "log_every": 1}
    words = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    recipe = ["--config", arguments.config, "--train.minutes", "null"]
    command = [sys.executable, "-m", "gatito", "train", *recipe, "--data", arguments.store, "--out", str(out), *words]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def step_in(out: Path) -> int:
    """The step that a run has logged last."""
    metrics = out / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def killed(arguments: argparse.Namespace, out: Path) -> None:
    """Run to the end through all kills, each at a random step."""
    rng = random.Random(arguments.seed)
    for step in sorted(rng.sample(range(1, arguments.steps), arguments.kills)):
        process = begin(arguments, out)
        # Of a run that continues, the lines of the one before stand there until it has begun.
        seen = step_in(out)
        while step_in(out) in (seen, 0) or step_in(out) < step:
            if process.poll() is not None:
                sys.exit(f"the run ended before its kill at step {step}, see {out}.log; choose more steps")
            time.sleep(rng.uniform(0.05, 0.1))
        process.kill()
        process.wait()
        last = max([0, *map(step_of, list_checkpoints(out))])
        print(f"killed after step {step_in(out)}, continues from {last}", flush=True)
    if begin(arguments, out).wait():
        sys.exit(f"the continued run failed, see {out}.log")


def lines(out: Path) -> list[dict[str, float]]:
    """`metrics.jsonl` without what depends on the clock."""
    read = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in read]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    began = time.monotonic()
    alone = begin(arguments, arguments.out / "alone")
    killed(arguments, arguments.out / "killed")
    if alone.wait():
        sys.exit(f"the run left alone failed, see {arguments.out}/alone.log")
    found, expected = (lines(arguments.out / name) for name in ("killed", "alone"))
    last = [list_checkpoints(arguments.out / name)[-1] for name in ("killed", "alone")]
    files = ("model.safetensors", "training/optimizer.safetensors")
    same = {name: sha256_of(last[0] / name) == sha256_of(last[1] / name) for name in files}
    minutes = (time.monotonic() - began) / 60
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {minutes:.1f} minutes for both")
    print(f"{len(found)} lines of metrics, equal: {found == expected}; files of the last checkpoint, equal: {same}")
    if found != expected or not all(same.values()):
        sys.exit("the runs differ")


if __name__ == "__main__":
    main()
