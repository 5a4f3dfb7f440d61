"""The choices behind the recipes' defaults, at equal minutes on equal cores.

Each variant trains the recipe `demo` on one thread for the same time, two at a time; then its loss over the ids of
the target's group is measured on rows of a store that holds other episodes, and its score on seeded episodes.

    python benchmarks/choices.py --store demo/store --held-out STORE --minutes 5 --seeds 0 1 --out runs/choices
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from gatito.data.sampler import Sampler
from gatito.data.store import open_store
from gatito.eval.agent import load_checkpoint
from gatito.eval.rollout import evaluate_task
from gatito.recipes import load_recipe
from gatito.train.configs import Recipe
from gatito.train.trainer import train

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "without rotary": {"rotary": False},
    "full softmax": {"loss_over": "full"},
}
HELD_OUT_ROWS = 96


def run(arguments: argparse.Namespace, variant: str, seed: int, out: Path) -> None:
    """Train and measure one variant, and write `out/result.json`."""
    torch.set_num_threads(1)
    recipe = load_recipe("demo")
    changed = dataclasses.replace(recipe.model, **VARIANTS[variant])
    budget = dataclasses.replace(recipe.train, seed=seed, minutes=arguments.minutes)
    checkpoint = train(Recipe(model=changed, train=budget), arguments.store, out)
    model, processor = load_checkpoint(checkpoint)
    model.config.loss_over = "group"
    sampler = Sampler(store=open_store(arguments.held_out), context=budget.context, seed=10**6)
    result: dict[str, float] = {"steps": float(checkpoint.name.removeprefix("step-"))}
    with torch.inference_mode():
        outputs = [model(**sampler.batch(first, 16).tensors()).targets for first in range(0, HELD_OUT_ROWS, 16)]
    for group in outputs[0].loss_sum:
        targets = sum(float(o.num_targets[group]) for o in outputs)
        if targets:
            result[f"loss, {group}"] = sum(float(o.loss_sum[group]) for o in outputs) / targets
    tasks = arguments.tasks or sorted(processor.layouts)
    scores = [evaluate_task(model, processor, task, episodes=arguments.episodes).score for task in tasks]
    result["mean score"] = statistics.mean(scores)
    (out / "result.json").write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run(arguments, arguments.one[0], int(arguments.one[1]), arguments.out)
        return
    jobs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    folders = {job: arguments.out / f"{job[0].replace(' ', '-')}-{job[1]}" for job in jobs}
    waiting = [job for job in jobs if not (folders[job] / "result.json").is_file()]
    while waiting:
        pair, waiting = waiting[:2], waiting[2:]
        commands = [
            [*[sys.executable, *sys.argv], "--one", variant, str(seed), "--out", str(folders[variant, seed])]
            for variant, seed in pair
        ]
        running = [subprocess.Popen(c, env={**os.environ, "OMP_NUM_THREADS": "1"}) for c in commands]
        if any(process.wait() for process in running):
            sys.exit("a variant failed")
    results = {job: json.loads((folder / "result.json").read_text()) for job, folder in folders.items()}
    columns = list(next(iter(results.values())))
    print(
        f"{platform.machine()}, one thread each, {arguments.minutes:g} minutes, seeds {arguments.seeds}: mean (range)"
    )
    print("| variant | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for variant in arguments.variants:
        cells = []
        for column in columns:
            seen = [results[variant, seed][column] for seed in arguments.seeds]
            cells.append(f"{statistics.mean(seen):.3f} ({min(seen):.3f} to {max(seen):.3f})")
        print(f"| {variant} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
