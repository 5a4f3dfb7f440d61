"""The choices behind the recipes' defaults, at equal minutes on equal cores.

Each variant trains the recipe `demo` on one thread for the same time, two at a time; then its loss over the ids of
the target's group is measured on rows of a store that holds other episodes, and its score on seeded episodes.

    python benchmarks/choices.py --store demo/store --held-out STORE --minutes 4 --seeds 0 1 --out runs/choices

It prints a table of variants and one of tasks, and draws both into `choices.png`.
"""

import argparse
import dataclasses
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from side_by_side import Job, folder_name, run_jobs

from gatito.data.sampler import Sampler
from gatito.data.store import open_store
from gatito.eval.agent import load_checkpoint
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import evaluate_task
from gatito.eval.language import evaluate_language
from gatito.recipes import load_recipe
from gatito.train.configs import Recipe
from gatito.train.trainer import train

matplotlib.use("Agg")
from matplotlib import pyplot

FLAT = {"latents": 0, "action_layers": 0}
TRUNK_ACTIONS = {"latents": 1, "action_layers": 0}
DECODED = {"latents": 1, "resampler_depth": 0, "action_layers": 1}
POSITIONS: dict[str, dict[str, dict[str, Any]]] = {
    "flat": {"model": FLAT, "train": {"context": 256}},
    "1 latent, depth 0, actions in the trunk": {"model": TRUNK_ACTIONS | {"resampler_depth": 0}},
    "1 latent, depth 1, actions in the trunk": {"model": TRUNK_ACTIONS | {"resampler_depth": 1}},
    "the same, depth 0, context 320": {"model": TRUNK_ACTIONS | {"resampler_depth": 0}, "train": {"context": 320}},
    "the same, depth 1, context 320": {"model": TRUNK_ACTIONS | {"resampler_depth": 1}, "train": {"context": 320}},
    "1 latent, depth 0, actions decoded": {"model": DECODED},
    "1 latent, depth 1, actions decoded": {"model": DECODED | {"resampler_depth": 1}},
    "1 latent, depth 2, actions decoded": {"model": DECODED | {"resampler_depth": 2}},
    "4 latents, depth 0, actions decoded": {"model": DECODED | {"latents": 4}, "train": {"context": 256}},
    "1 latent, depth 0, actions decoded, images too": {"model": DECODED | {"resample_images": True}},
}
"""Changes to the recipe, by name. The context is 64 positions where nothing else is said: 64 timesteps where actions
are decoded, 12 of Meta-World (1 latent and 4 actions each) where they have positions, of which 320 hold 64."""
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "flat, without rotary": {"model": FLAT | {"rotary": False}, "train": {"context": 256}},
    "flat, full softmax": {"model": FLAT | {"loss_over": "full"}, "train": {"context": 256}},
}
VARIANTS = POSITIONS | OTHERS
HELD_OUT_ROWS = 96


def run(arguments: argparse.Namespace, variant: str, seed: int, out: Path) -> None:
    """Train and measure one variant, and write `out/result.json`."""
    torch.set_num_threads(1)
    recipe, changes = load_recipe("demo"), VARIANTS[variant]
    shape = dataclasses.replace(recipe.model, **changes.get("model", {}))
    # Steps without end: the minutes end all of them.
    budget = {"seed": seed, "minutes": arguments.minutes, "steps": 10**6, **changes.get("train", {})}
    checkpoint = train(Recipe(model=shape, train=dataclasses.replace(recipe.train, **budget)), arguments.store, out)
    model, processor = load_checkpoint(checkpoint)
    model.config.loss_over = "group"
    held_out = open_store(arguments.held_out)
    sampler = Sampler(store=held_out, context=model.config.context, trunk=model.config.trunk, seed=10**6)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    result: dict[str, Any] = {"thousand tokens/s": statistics.mean(line["tokens_per_s"] for line in lines) / 1000}
    with torch.inference_mode():
        outputs = [model(**sampler.batch(first, 16).tensors()).targets for first in range(0, HELD_OUT_ROWS, 16)]
    for group in outputs[0].loss_sum:
        targets = sum(float(o.num_targets[group]) for o in outputs)
        if targets:
            result[f"loss, {group}"] = sum(float(o.loss_sum[group]) for o in outputs) / targets
    tasks = arguments.tasks or sorted(processor.layouts)
    rows = [evaluate_task(model, processor, task, EvaluationConfig(episodes=arguments.episodes)) for task in tasks]
    result["captions"] = evaluate_language(model, processor, "captions:digits").score.exact
    result["mean score"] = statistics.mean(row.score for row in rows if row.score is not None)
    result["tasks"] = {row.id: [row.score, row.ci_low, row.ci_high] for row in rows}
    (out / "result.json").write_text(json.dumps(result))


Results = dict[Job, dict[str, Any]]


def half_width(results: Results, variant: str, seeds: list[int]) -> float:
    """Half of the 95 % interval over episodes of a mean score: those of tasks and seeds, added in squares."""
    halves = [(high - low) / 2 for seed in seeds for _, low, high in results[variant, seed]["tasks"].values()]
    return float(np.sqrt(np.sum(np.square(halves))) / len(halves))


def print_tables(results: Results, variants: list[str], seeds: list[int]) -> None:
    columns = [column for column in results[variants[0], seeds[0]] if column != "tasks"]
    print("| variant | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for variant in variants:
        cells = []
        for column in columns:
            seen = [results[variant, seed][column] for seed in seeds]
            cells.append(f"{statistics.mean(seen):.3g} ({min(seen):.3g} to {max(seen):.3g})")
        cells[-1] += f", ± {half_width(results, variant, seeds):.2f}"
        print(f"| {variant} | " + " | ".join(cells) + " |")
    print("\n| task | " + " | ".join(variants) + " |\n|---|" + "---|" * len(variants))
    for task in results[variants[0], seeds[0]]["tasks"]:
        means = [statistics.mean(results[variant, seed]["tasks"][task][0] for seed in seeds) for variant in variants]
        print(f"| {task} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


def draw(results: Results, variants: list[str], seeds: list[int], title: str, path: Path) -> None:
    """Mean scores with intervals, a point per seed; beside them the score of every task."""
    tasks = list(results[variants[0], seeds[0]]["tasks"])
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(13, 1.2 + 0.42 * len(variants)), sharey=True, width_ratios=[2, 3], layout="constrained"
    )
    for y, variant in enumerate(variants):
        scores = [results[variant, seed]["mean score"] for seed in seeds]
        half = half_width(results, variant, seeds)
        left.barh(y, statistics.mean(scores), xerr=half, color="#9db8d2", ecolor="#333333", capsize=3, height=0.6)
        left.plot(scores, [y] * len(scores), "o", color="#1f4e79", markersize=4)
    left.set(
        yticks=range(len(variants)),
        yticklabels=variants,
        xlim=(0, 1.05),
        xlabel="mean score, 95 % interval over episodes; points are seeds",
    )
    left.invert_yaxis()
    grid = [
        [statistics.mean(results[variant, seed]["tasks"][task][0] for seed in seeds) for task in tasks]
        for variant in variants
    ]
    right.imshow(np.clip(grid, 0, 1), cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
    for y, row in enumerate(grid):
        for x, score in enumerate(row):
            right.text(x, y, f"{score:.2f}", ha="center", va="center", fontsize=8)
    names = [task.partition("/")[2] for task in tasks]
    right.set_xticks(range(len(tasks)), names, rotation=30, ha="right", fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--tasks", nargs="*")
    parser.add_argument("--variants", nargs="+", default=list(POSITIONS), choices=list(VARIANTS))
    parser.add_argument("--one", nargs=2, metavar=("VARIANT", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run(arguments, arguments.one[0], int(arguments.one[1]), arguments.out)
        return
    jobs = [(variant, seed) for seed in arguments.seeds for variant in arguments.variants]
    folders = {job: arguments.out / folder_name(job) for job in jobs}
    run_jobs(folders)
    results = {job: json.loads((folder / "result.json").read_text()) for job, folder in folders.items()}
    title = f"{arguments.minutes:g} minutes on one thread of {platform.machine()}, seeds {arguments.seeds}"
    print(f"{title}, {arguments.episodes} episodes a task: mean (range over seeds)")
    print_tables(results, arguments.variants, arguments.seeds)
    draw(results, arguments.variants, arguments.seeds, title, arguments.out / "choices.png")


if __name__ == "__main__":
    main()
