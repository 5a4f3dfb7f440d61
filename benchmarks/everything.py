"""Control, text, captions and questions by one set of weights: losses by domain, and what it answers.

Builds the mixture `everything`, trains the recipe `demo` on it, and asks the held-out digits and scenes, and new ones
of the combinations that it was trained on:

    python benchmarks/everything.py --minutes 3 --out runs/everything        about 6 minutes on two cores

It prints the tables of docs/words.md and draws its picture, `everything.png`.
"""

import argparse
import dataclasses
import json
import platform
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from textwrap import wrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import yaml

from gatito.data.build import build
from gatito.data.domains import scenes
from gatito.data.domains.scenes import QUESTIONS, Scene
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.eval.agent import load_checkpoint
from gatito.eval.language import continue_texts, evaluate_language, write_after
from gatito.eval.language_score import language_words
from gatito.eval.statistics import wilson_interval
from gatito.model import GatitoForCausalLM, GatitoProcessor
from gatito.recipes import load_recipe, mixture_path
from gatito.train.trainer import train

SHOWN = 12
"""Scenes of each kind on the picture."""
BEGINNINGS = ["The ", "import ", "If the expression "]
AHEAD = 20_000
"""New scenes are those from this one on, which the mixture never comes to."""


def print_losses(metrics: Path) -> None:
    """Losses by domain at a few steps."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    rows = [row for row in rows if any(key.startswith("domain_loss/") for key in row)]
    shown = [rows[i] for i in sorted({0, len(rows) // 5, len(rows) // 2, len(rows) - 1})]
    domains = sorted({key.partition("/")[2] for row in rows for key in row if key.startswith("domain_loss/")})
    print(f"\n| step | {' | '.join(domains)} |\n|{'---|' * (len(domains) + 1)}")
    for row in shown:
        losses = (row.get(f"domain_loss/{domain}") for domain in domains)
        print(f"| {row['step']} | {' | '.join('-' if loss is None else f'{loss:.3f}' for loss in losses)} |")


def print_answers(kinds: dict[str, tuple[list[Scene], list[str]]]) -> None:
    """Shares of right answers, by question, beside always giving the commonest one."""
    print("\n| scenes | question | right | 95 % interval | commonest answer |\n|---|---|---|---|---|")
    for kind, (asked, written) in kinds.items():
        for about in (*QUESTIONS, None):
            pairs = [(s.answer, w) for s, w in zip(asked, written, strict=True) if about in (None, s.about)]
            right, expected = sum(a == w for a, w in pairs), [a for a, _ in pairs]
            low, high = wilson_interval(right, len(pairs))
            commonest = max(expected.count(answer) for answer in set(expected)) / len(pairs)
            share = f"{right / len(pairs):.2f} | {low:.2f} to {high:.2f}"
            print(f"| {kind} | {about or 'all'} | {share} | {commonest:.2f} |")


def draw(kinds: dict[str, tuple[list[Scene], list[str]]], out: Path) -> None:
    """The first scenes of each kind with what was asked, and what was answered."""
    columns = SHOWN // 2
    figure, axes = plt.subplots(4, columns, figsize=(2.3 * columns, 12.5))
    for k, (kind, (asked, written)) in enumerate(kinds.items()):
        for i in range(SHOWN):
            axis, scene, answer = axes[2 * k + i // columns][i % columns], asked[i], written[i]
            axis.imshow(scene.image())
            axis.set_axis_off()
            right = answer == scene.answer
            said = answer if right else f"{answer or '(nothing)'}, not {scene.answer}"
            question = "\n".join(wrap(scene.question, 26))
            colour = "#1a7f37" if right else "#b42318"
            axis.set_title(f"{kind}\n{question}\n{said}", fontsize=8, color=colour)
    figure.tight_layout(h_pad=2)
    figure.savefig(out, dpi=90)


def answers_of(model: GatitoForCausalLM, processor: GatitoProcessor, asked_of: Sequence[scenes.Scene]) -> list[str]:
    """Greedy answers to the questions about scenes."""
    return write_after(model, processor, [scenes.document(scene).parts[:-1] for scene in asked_of], "answers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--scenes", type=int, default=400, help="of each kind that are asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/everything"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    entries = yaml.safe_load(Path(mixture_path("everything")).read_text())["datasets"]
    mixture = MixtureConfig(datasets=[DatasetConfig(**entry) for entry in entries], collected=str(out / "datasets"))
    build(mixture, out / "store")
    recipe = load_recipe("demo")
    budget = dataclasses.replace(
        recipe.train, minutes=arguments.minutes, steps=10**6, seed=arguments.seed, context=128
    )
    checkpoint = train(dataclasses.replace(recipe, train=budget), out / "store", out / "run")
    model, processor = load_checkpoint(str(checkpoint))
    new = list(islice(scenes.training_scenes(), AHEAD, AHEAD + arguments.scenes))
    held_out = list(islice(scenes.held_out_scenes(), arguments.scenes))
    kinds = {
        "seen combinations": (new, answers_of(model, processor, new)),
        "held out": (held_out, answers_of(model, processor, held_out)),
    }
    print(
        f"\n{platform.processor() or platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, seed {arguments.seed}, {arguments.minutes:g} minutes"
    )
    print_losses(out / "run/metrics.jsonl")
    print(f"\nheld-out digits: {language_words(evaluate_language(model, processor, 'captions:digits').score)}")
    print_answers(kinds)
    print()
    for text in continue_texts(model, processor, BEGINNINGS):
        print(f"    {text!r}")
    draw(kinds, out / "everything.png")
    print(out / "everything.png")


if __name__ == "__main__":
    main()
