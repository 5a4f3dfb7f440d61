"""`report.html`: one self-contained page on what was trained, how well it acts, and what to do next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from gatito.eval.attention import AttentionView
from gatito.eval.attention_chart import attention_picture
from gatito.eval.charts import learning_curves, read_metrics, score_axis, score_bars, stacked_bar
from gatito.eval.language import Caption
from gatito.eval.results import Results
from gatito.eval.rollout import TaskResult, mean_score
from gatito.eval.videos import FAILED_BELOW, Video
from gatito.pages import data_uri, facts_list, legend, modality_legend, png_uri, section, timestep_chips, write_page

PROMPTS = {"none": "no prompt", "demo": "a demonstration as prompt"}
"""What the prompts of `TaskResult` are called."""
NUM_CAPTIONS, NUM_WRONG = 24, 8
"""Captions shown, and how many wrong ones among them at most (where there are enough right ones)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """What the page shows; what is empty is left out."""

    title: str
    """Heading of the page."""
    results: Results
    """Scores of the checkpoint."""
    metrics: Path | None = None
    """`metrics.jsonl` of the run."""
    timesteps: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Source name to the rows of one timestep, see `token_rows`."""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Source name to the image (H, W, C) uint8 observed at this timestep."""
    videos: Sequence[Video] = ()
    """Episodes, one MP4 file each."""
    attention: Sequence[AttentionView] = ()
    """What the model looked at in chosen timesteps."""
    captions: Sequence[Caption] = ()
    """Captions of held-out images."""
    texts: Sequence[str] = ()
    """Sampled continuations."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Name to value: parameters, machine and the like."""
    next_commands: Sequence[str] = ()
    """Commands as typed."""


def write_report(report: Report, path: Path) -> None:
    """Write the page, whole or not at all."""
    sections = [
        _headline(report),
        _scores(report.results),
        _learning(report.metrics),
        _videos(report.videos),
        _attention(report.attention),
        _tokens(report.timesteps, report.images),
        _captions(report.captions),
        _texts(report.texts),
        _table(report.results.tasks),
        _minutes(report.results.seconds),
        _commands(report.next_commands),
    ]
    write_page(path, "gatito.eval", title=report.title, sections=sections)


def _headline(report: Report) -> str:
    cards = []
    for prompt, words in PROMPTS.items():
        rows = [row for row in report.results.tasks if row.prompt == prompt]
        if rows:
            cards.append(f"<div><b>{mean_score(rows):.2f}</b>mean score of {len(rows)} tasks, {words}</div>")
    if (c := report.results.captions) is not None:
        cards.append(
            f"<div><b>{c['exact']:.1%}</b>exact captions of {c['images']} held-out images, 95 % interval "
            f"{c['ci_low']:.1%} to {c['ci_high']:.1%}; always the commonest answer: {c['commonest_answer']:.1%}</div>"
        )
    lead = (
        "A score places a task's mean return between the random policy (0) and the scripted expert (1). Episodes are "
        "seeded, and their seeds were not trained on."
    )
    return section("At a glance", lead, f'<div class="cards">{"".join(cards)}</div>{facts_list(report.facts)}')


def _ordered(rows: Sequence[TaskResult]) -> list[TaskResult]:
    return sorted(rows, key=lambda row: (row.domain, row.id, row.prompt != "none"))


def _scores(results: Results) -> str:
    rows = _ordered(results.tasks)
    if not rows:
        return ""
    low = min(0.0, max(-1.0, min(row.ci_low for row in rows)))
    high = max(1.0, min(2.0, max(row.ci_high for row in rows)))
    prompts = [prompt for prompt in PROMPTS if any(row.prompt == prompt for row in rows)]
    parts = [legend({prompt: PROMPTS[prompt] for prompt in prompts})]
    for domain, in_domain in groupby(rows, lambda row: row.domain):
        parts.append(f'<h3>{escape(domain)}</h3>\n<div class="bar axis"><span class="name"></span>')
        parts.append(f"{score_axis(low, high)}</div>")
        for task, group in groupby(in_domain, lambda row: row.id):
            pair = list(group)
            values = "".join(f"<span>{row.score:.2f}</span>" for row in pair)
            parts.append(
                f'<div class="bar"><span class="name">{escape(task.partition("/")[2])}</span>'
                f'{score_bars(pair, low, high)}<span class="values">{values}</span></div>'
            )
    lead = (
        "Bars are mean scores, lines their 95 % intervals: bootstrap over episodes, Wilson where success is 0 or 1."
    )
    return section("Scores by domain", lead, "\n".join(parts))


def _table(tasks: Sequence[TaskResult]) -> str:
    if not tasks:
        return ""
    names = ("task", "prompt", "return", "random", "expert", "score", "95 % interval", "episodes")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "\n".join(
        f"<tr><td>{escape(r.id)}</td><td>{escape(r.prompt)}</td><td>{r.mean_return:.2f}</td><td>{r.random:.2f}</td>"
        f"<td>{r.expert:.2f}</td><td>{r.score:.2f}</td><td>{r.ci_low:.2f} to {r.ci_high:.2f}</td>"
        f"<td>{r.episodes}</td></tr>"
        for r in _ordered(tasks)
    )
    lead = "The good and the bad; of success tasks the return is the share of successful episodes."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return section(
        "All tasks", lead, f'<div class="scroll" role="region" tabindex="0" aria-label="All tasks">{table}</div>'
    )


def _learning(metrics: Path | None) -> str:
    rows = read_metrics(metrics) if metrics else []
    lead = (
        "By the ids of the target, over training steps; the legend gives the last value. Continuous and discrete "
        "targets are actions, text targets are captions and documents."
    )
    return section("Learning", lead, learning_curves(rows)) if rows else ""


def _videos(videos: Sequence[Video]) -> str:
    figures = []
    for v in sorted(videos, key=lambda v: not v.failed):
        note = f'<br><span class="wrong">{escape(v.note)}</span>' if v.note else ""
        failed = ' <span class="wrong">failed</span>' if v.failed else ""
        figures.append(
            f'<figure><video controls muted loop playsinline preload="metadata" '
            f'aria-label="{escape(v.task)}: {escape(v.caption)}" '
            f'src="{data_uri("video/mp4", v.path.read_bytes())}"></video>'
            f"<figcaption><b>{escape(v.task)}</b>{failed}<br>{escape(v.caption)}{note}</figcaption></figure>"
        )
    lead = (
        f"Episodes, the failed ones first: their score is below {FAILED_BELOW:g}, nearer to the random policy than "
        "to the expert."
    )
    return section("Acting", lead, f'<div class="figures">{"".join(figures)}</div>') if figures else ""


def _attention(views: Sequence[AttentionView]) -> str:
    parts = []
    for view in views:
        image = (
            "" if view.image is None else f'<img class="observed" alt="what was seen" src="{png_uri(view.image)}">'
        )
        parts.append(
            f"<h3>{escape(view.task)}, seed {view.seed}, step {view.step}</h3>\n"
            f'<div class="looked">{image}<div>{attention_picture(view)}</div></div>\n'
            f"{timestep_chips(f'Step {view.step} as tokens', view.rows)}"
        )
    lead = (
        "Attention of the position that chooses the action, over the timesteps of the context; the mean over heads. "
        "It shows what each layer read, not why the model acted so: what it read may not have mattered, and one "
        "layer's reading holds what others had mixed into it. Framed tokens are the action chosen."
    )
    return section("What it looks at", lead, "\n".join(parts)) if parts else ""


def _tokens(timesteps: Mapping[str, list[dict[str, Any]]], images: Mapping[str, np.ndarray]) -> str:
    parts = [timestep_chips(source, rows, images.get(source)) for source, rows in timesteps.items()]
    lead = (
        "One timestep of each domain, as the model reads it. Framed tokens are targets: the model learns to predict "
        "them, and picks them when it acts."
    )
    return section("From timesteps to tokens", lead, "\n".join([modality_legend(), *parts])) if timesteps else ""


def _captions(captions: Sequence[Caption]) -> str:
    wrong = [c for c in captions if c.written != c.expected]
    right = [c for c in captions if c.written == c.expected]
    shown = [*wrong[: max(NUM_WRONG, NUM_CAPTIONS - len(right))], *right]
    figures = []
    for c in shown[:NUM_CAPTIONS]:
        is_wrong = c.written != c.expected
        expected = f"<br>wrong, expected: {escape(c.expected)}" if is_wrong else ""
        figures.append(
            f'<figure{" class=wrong" if is_wrong else ""}><img alt="{escape(c.expected)}" src="{png_uri(c.image)}">'
            f"<figcaption><b>{escape(c.written) or '(nothing)'}</b>{expected}</figcaption></figure>"
        )
    lead = f"{len(figures)} of {len(captions)} held-out images; of the {len(wrong)} wrong captions the first lead."
    body = f'<div class="figures captions">{"".join(figures)}</div>'
    return section("Captions", lead, body) if figures else ""


def _texts(texts: Sequence[str]) -> str:
    body = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in texts)
    return section("Text", "Sampled continuations, each with its given beginning.", body) if texts else ""


def _minutes(seconds: Mapping[str, float]) -> str:
    if not sum(seconds.values()):
        return ""
    names = {f"s{i % 6}": f"{name} {s / 60:.1f}" for i, (name, s) in enumerate(seconds.items())}
    lead = f"{sum(seconds.values()) / 60:.1f} minutes of wall time, by stage."
    return section("Minutes", lead, stacked_bar(list(seconds.values())) + legend(names))


def _commands(commands: Sequence[str]) -> str:
    body = f"<pre>{escape(chr(10).join(commands))}</pre>"
    return section("What next", "Commands that go on from here.", body) if commands else ""
