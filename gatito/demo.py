"""`gatito demo`: five domains from expert to score, with one set of weights."""

import dataclasses
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from gatito.commands import tokens_of
from gatito.data.build import build
from gatito.data.collect import collect
from gatito.data.collection import CollectConfig
from gatito.data.explain import token_rows
from gatito.data.mixture import DatasetConfig, MixtureConfig
from gatito.data.publish import check_writable
from gatito.data.tasks import EVALUATION_SEEDS
from gatito.data_commands import describe_store
from gatito.errors import UserError
from gatito.eval.actor import Actor
from gatito.eval.agent import load_checkpoint
from gatito.eval.attention import AttentionView, view_attention
from gatito.eval.card import write_card
from gatito.eval.config import EvaluationConfig
from gatito.eval.evaluate import CheckedTask, baselines_of, check_tasks, evaluate, make_actor, make_prompts
from gatito.eval.language import continue_texts, evaluate_language
from gatito.eval.mp4 import pyav
from gatito.eval.report import Report, write_report
from gatito.eval.results import Results, print_results, write_results
from gatito.eval.videos import Video, record_episode
from gatito.model import GatitoForCausalLM
from gatito.recipes import load_recipe
from gatito.tokenizers.patches import PATCH, from_patches
from gatito.train.configs import Recipe
from gatito.train.trainer import train

SHOWN = ("classic/cartpole", "box2d/lunar-lander", "metaworld/plate-slide", "babyai/go-to-local-s5n2")
"""Tasks whose tokens and videos the report shows, one per domain."""
BEGINNINGS = ("The assert statement", "A class definition", "If the expression", "The with statement is used to")


@dataclass(frozen=True, kw_only=True)
class DemoTask:
    """One task of the demo."""

    episodes: int
    """Demonstrations to collect."""
    weight: float
    """Share of the training rows, relative to the others."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much the demo does."""

    share: float
    """Of the demonstrations."""
    episodes: int
    """Evaluation episodes per task, unprompted."""
    prompted_episodes: int
    """Evaluation episodes per task with a demonstration as prompt."""
    images: int | None
    """Held-out images to caption; None is all."""
    minutes: int
    """Expected wall time on two cores, for the first line."""


TASKS = {
    "classic/cartpole": DemoTask(episodes=60, weight=0.5),
    "classic/mountain-car": DemoTask(episodes=200, weight=0.4),
    "classic/mountain-car-continuous": DemoTask(episodes=150, weight=0.5),
    "classic/acrobot": DemoTask(episodes=150, weight=0.3),
    "box2d/lunar-lander": DemoTask(episodes=200, weight=3.0),
    "metaworld/door-unlock": DemoTask(episodes=150, weight=1.2),
    "metaworld/handle-press-side": DemoTask(episodes=150, weight=1.2),
    "metaworld/plate-slide": DemoTask(episodes=150, weight=1.2),
    "metaworld/button-press-topdown-wall": DemoTask(episodes=150, weight=1.2),
    "babyai/go-to-obj": DemoTask(episodes=1500, weight=1.2),
    "babyai/go-to-red-ball-no-dists": DemoTask(episodes=1500, weight=1.2),
    "babyai/go-to-local-s5n2": DemoTask(episodes=3000, weight=1.8),
}
CAPTIONS_WEIGHT, TEXT_WEIGHT = 0.4, 0.2
FULL = Size(share=1.0, episodes=50, prompted_episodes=20, images=None, minutes=10)
SMALL = Size(share=0.04, episodes=3, prompted_episodes=2, images=40, minutes=3)


class Stages:
    """Wall time by stage, said as each begins."""

    def __init__(self) -> None:
        """Nothing has run yet."""
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Time a stage."""
        tqdm.write(f"\n[{sum(self.seconds.values()) / 60:4.1f} min] {what}")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def demo_recipe(small: bool) -> Recipe:
    """The recipe `demo` of the package, cut down for --small."""
    recipe = load_recipe("demo")
    if small:
        cut = dataclasses.replace(recipe.train, steps=60, warmup=10, minutes=0.5)
        return dataclasses.replace(recipe, train=cut)
    return recipe


def run_demo(out: Path, *, small: bool = False) -> Results:
    """Run all stages into `out`, which must not hold an earlier demo."""
    check_writable(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; remove it or choose another --out")
    pyav()  # the videos come last: what they need is asked for first
    size, stages = (SMALL if small else FULL), Stages()
    datasets, run = out / "datasets", out / "run"
    counts = {task: max(4, round(t.episodes * size.share)) for task, t in TASKS.items()}
    print(f"gatito demo: {len(TASKS)} control tasks, captions and text; about {size.minutes} minutes on two cores")
    with stages.stage("collect", f"1/5 collect {sum(counts.values())} demonstrations from scripted experts"):
        collect(list(TASKS), datasets, CollectConfig(), counts)
    with stages.stage("build", "2/5 filter and tokenize into one store"):
        mixture = MixtureConfig(
            datasets=[
                *(
                    DatasetConfig(source=f"minari:{datasets / t / 'noisy-v0'}", weight=c.weight)
                    for t, c in TASKS.items()
                ),
                DatasetConfig(source="captions:digits", weight=CAPTIONS_WEIGHT),
                DatasetConfig(source="text:python-docs", weight=TEXT_WEIGHT),
            ]
        )
        describe_store(build(mixture, out / "store"))
    recipe = demo_recipe(small)
    with stages.stage("train", f"3/5 train one set of weights, at most {recipe.train.minutes} minutes"):
        checkpoint = train(recipe, out / "store", run)
    with stages.stage("evaluate", "4/5 evaluate, without and with a demonstration as prompt"):
        model, processor = load_checkpoint(checkpoint)
        how = EvaluationConfig(
            episodes=size.episodes, prompt="none,beginning", prompted_episodes=size.prompted_episodes
        )
        checked = check_tasks(processor, list(TASKS), how)
        results = Results(
            records=evaluate(model, processor, checked, how),
            baselines=baselines_of(checked),
            checkpoint=str(run),
            settings=how.to_json(),
            seconds=stages.seconds,
        )
        captions = evaluate_language(model, processor, "captions:digits", size.images)
        written = continue_texts(model, processor, list(BEGINNINGS))
    results = dataclasses.replace(results, language=[captions.score])
    # Written now as well: whatever fails while filming must not cost the scores.
    write_results(results, out / "results.json")
    with stages.stage("report", "5/5 record videos and write the report"):
        by_id = {task.spec.id: task for task in checked}
        shown_tasks = [by_id[task] for task in SHOWN]
        actor = make_actor(model, how, 1)
        videos = [
            record_episode(actor, task, out / "videos") for task in tqdm(shown_tasks, desc="film", unit="episode")
        ]
        looks = look_at(actor, shown_tasks, videos, how)
        timesteps, images = {}, {}
        for source in (*SHOWN, "captions:digits", "text:python-docs"):
            sequence, vocabulary, text, layout = tokens_of(source, 0)
            last = 1 if layout or source.startswith("captions") else 40
            shown = sequence.timesteps(0, last, vocabulary.patch)
            timesteps[source] = token_rows(shown, vocabulary, text, layout)
            if len(shown.patches):
                fields = [f for f in layout.observations if f.kind == "image"] if layout else []
                height, width = fields[0].shape[:2] if fields else (PATCH, PATCH)
                images[source] = from_patches(shown.patches, (height, width, 3))[0]
    write_results(results, out / "results.json")
    write_card(results, out / "card.md")
    following = next_commands(out)
    report = Report(
        title="gatito demo",
        results=results,
        metrics=run / "metrics.jsonl",
        evaluations=run / "evaluations.jsonl",
        timesteps=timesteps,
        images=images,
        videos=videos,
        attention=looks,
        answers=captions.answers,
        texts=written,
        facts=facts(model, run / "metrics.jsonl"),
        next_commands=following,
    )
    write_report(report, out / "report.html")
    print_results(results)
    print("minutes: " + ", ".join(f"{k} {v / 60:.1f}" for k, v in stages.seconds.items()))
    print(f"wrote {out / 'report.html'} and {out / 'results.json'}\nnext:")
    for command in following:
        print(f"  {command}")
    return results


def look_at(
    actor: Actor, shown: list[CheckedTask], videos: list[Video], how: EvaluationConfig
) -> list[AttentionView]:
    """Attention with a demonstration as prompt, in LunarLander, and without, amid the BabyAI episode of the video."""
    prompt = make_prompts(actor.model, shown[1], how).prompt("beginning", 0, EVALUATION_SEEDS)
    return [
        view_attention(actor, shown[1], step=20, prompt=prompt),  # it takes longer to fall
        view_attention(actor, shown[3], step=videos[3].length // 2),
    ]


def facts(model: GatitoForCausalLM, metrics: Path) -> dict[str, str]:
    """What was trained, on what."""
    parameters = sum(p.numel() for p in model.parameters())
    table = model.model.embedding.tokens.weight.numel()
    latents, context = model.config.latents, model.config.context
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    return {
        "parameters": f"{parameters / 1e6:.2f} M, {(parameters - table) / 1e6:.2f} M without the token table",
        "steps": str(lines[-1]["step"]),
        "context": f"{context} positions, of which an observation takes {latents or 'one per token'}",
        "training tokens per second": f"{sum(line['tokens_per_s'] for line in lines) / len(lines):.0f}",
        "machine": f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}",
    }


def next_commands(out: Path) -> list[str]:
    """Commands that go on from here, as typed."""
    run, store = out / "run", out / "store"
    return [
        f"gatito eval {run} --tasks {SHOWN[0]} --episodes 50 --prompt all --out {out / 'eval'}",
        f"gatito play {run}",
        f"gatito tokens {out / 'datasets' / SHOWN[2] / 'noisy-v0'} --episode 0",
        f"gatito train --config demo --data {store} --train.steps 10000 --train.minutes 120 --out runs/longer",
        f"gatito data collect --tasks babyai/pickup-loc --episodes 500 --out {out / 'more'}",
    ]
