"""`report.html`: one self-contained page on what was trained, how well it acts, and what to do next."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from gatito.eval.charts import learning_curves, legend, read_metrics, score_axis, score_bars, stacked_bar
from gatito.eval.language import Caption
from gatito.eval.results import Results
from gatito.eval.rollout import TaskResult, mean_score
from gatito.eval.videos import Video, encode_gif

PROMPTS = {"none": "no prompt", "demo": "a demonstration as prompt"}
"""What the prompts of `TaskResult` are called."""
MODALITIES = {
    "text": "a piece of text",
    "continuous": "a number, in one of 1024 bins",
    "discrete": "one of a few values",
    "separator": "between observation and action",
    "patch": "16x16 pixels",
}
"""What each colour of token stands for."""
MAX_CHIPS = 60
"""Tokens of a timestep that are shown before the rest folds away."""
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
    """Episodes, one GIF each."""
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
    template = Template(files("gatito.eval").joinpath("report.html").read_text(encoding="utf-8"))
    sections = [
        _headline(report),
        _scores(report.results),
        _learning(report.metrics),
        _videos(report.videos),
        _tokens(report.timesteps, report.images),
        _captions(report.captions),
        _texts(report.texts),
        _table(report.results.tasks),
        _minutes(report.results.seconds),
        _commands(report.next_commands),
    ]
    page = template.substitute(title=escape(report.title), sections="\n".join(filter(None, sections)))
    temporary = path.with_suffix(".partial")
    temporary.write_text(page, encoding="utf-8")
    temporary.rename(path)


def _section(title: str, lead: str, body: str) -> str:
    return f'<section>\n<h2>{title}</h2>\n<p class="lead">{lead}</p>\n{body}\n</section>'


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
    facts = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in report.facts.items())
    lead = (
        "A score places a task's mean return between the random policy (0) and the scripted expert (1). Episodes are "
        "seeded, and their seeds were not trained on."
    )
    return _section("At a glance", lead, f'<div class="cards">{"".join(cards)}</div><dl>{facts}</dl>')


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
    return _section("Scores by domain", lead, "\n".join(parts))


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
    return _section(
        "All tasks", lead, f'<div class="scroll" role="region" tabindex="0" aria-label="All tasks">{table}</div>'
    )


def _learning(metrics: Path | None) -> str:
    rows = read_metrics(metrics) if metrics else []
    lead = (
        "By the ids of the target, over training steps; the legend gives the last value. Continuous and discrete "
        "targets are actions, text targets are captions and documents."
    )
    return _section("Learning", lead, learning_curves(rows)) if rows else ""


def _videos(videos: Sequence[Video]) -> str:
    figures = []
    for v in videos:
        note = f'<br><span class="wrong">{escape(v.note)}</span>' if v.note else ""
        gif = _data("gif", encode_gif(v.frames, v.fps))
        figures.append(
            f'<figure><img alt="{escape(v.task)}: {escape(v.caption)}" src="{gif}">'
            f"<figcaption><b>{escape(v.task)}</b><br>{escape(v.caption)}{note}</figcaption></figure>"
        )
    lead = "Episodes, shown whether they succeed or fail."
    return _section("Acting", lead, f'<div class="figures">{"".join(figures)}</div>') if figures else ""


def _tokens(timesteps: Mapping[str, list[dict[str, Any]]], images: Mapping[str, np.ndarray]) -> str:
    parts = [legend({name: f"{name}: {words}" for name, words in MODALITIES.items()})]
    for source, rows in timesteps.items():
        targets = sum(row["loss_mask"] for row in rows)
        parts.append(f"<h3>{escape(source)}</h3><small>{len(rows)} tokens, {targets} of them targets</small>")
        if source in images:
            parts.append(f'<img class="observed" alt="the image observed" src="{_png(images[source])}">')
        parts.append(f'<ol class="chips">{"".join(map(_chip, rows[:MAX_CHIPS]))}</ol>')
        if rest := rows[MAX_CHIPS:]:
            parts.append(f"<details><summary>{len(rest)} more tokens</summary>")
            parts.append(f'<ol class="chips">{"".join(map(_chip, rest))}</ol></details>')
    lead = (
        "One timestep of each domain, as the model reads it. Framed tokens are targets: the model learns to predict "
        "them, and picks them when it acts."
    )
    return _section("From timesteps to tokens", lead, "\n".join(parts)) if timesteps else ""


def _chip(row: Mapping[str, Any]) -> str:
    modality, meaning = escape(row["modality"]), escape(row["meaning"])
    inline = f"<small>{meaning}</small>" if row["modality"] != "patch" else ""
    token, target = ("patch" if row["id"] is None else row["id"]), " target" if row["loss_mask"] else ""
    title = f"{modality}{',' * bool(target)}{target}, local position {row['local_position']}: {meaning}"
    return f'<li class="{modality}{target}" title="{title}">{token}{inline}</li>'


def _captions(captions: Sequence[Caption]) -> str:
    wrong = [c for c in captions if c.written != c.expected]
    right = [c for c in captions if c.written == c.expected]
    shown = [*wrong[: max(NUM_WRONG, NUM_CAPTIONS - len(right))], *right]
    figures = []
    for c in shown[:NUM_CAPTIONS]:
        is_wrong = c.written != c.expected
        expected = f"<br>wrong, expected: {escape(c.expected)}" if is_wrong else ""
        figures.append(
            f'<figure{" class=wrong" if is_wrong else ""}><img alt="{escape(c.expected)}" src="{_png(c.image)}">'
            f"<figcaption><b>{escape(c.written) or '(nothing)'}</b>{expected}</figcaption></figure>"
        )
    lead = f"{len(figures)} of {len(captions)} held-out images; of the {len(wrong)} wrong captions the first lead."
    body = f'<div class="figures captions">{"".join(figures)}</div>'
    return _section("Captions", lead, body) if figures else ""


def _texts(texts: Sequence[str]) -> str:
    body = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in texts)
    return _section("Text", "Sampled continuations, each with its given beginning.", body) if texts else ""


def _minutes(seconds: Mapping[str, float]) -> str:
    if not sum(seconds.values()):
        return ""
    names = {f"s{i % 6}": f"{name} {s / 60:.1f}" for i, (name, s) in enumerate(seconds.items())}
    lead = f"{sum(seconds.values()) / 60:.1f} minutes of wall time, by stage."
    return _section("Minutes", lead, stacked_bar(list(seconds.values())) + legend(names))


def _commands(commands: Sequence[str]) -> str:
    body = f"<pre>{escape(chr(10).join(commands))}</pre>"
    return _section("What next", "Commands that go on from here.", body) if commands else ""


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _png(pixels: np.ndarray) -> str:
    """Data URI of an image (H, W, C) uint8 with one or three channels."""
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return _data("png", file.getvalue())
