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
from gatito.eval.charts import learning_curves, read_metrics, score_curves, stacked_bar
from gatito.eval.language import Answer
from gatito.eval.results import Results
from gatito.eval.score_sections import at_a_glance, by_domain, by_order, by_prompt, tasks_above_expert
from gatito.eval.score_tables import all_tasks, what_went_wrong, without_score
from gatito.eval.videos import FAILED_BELOW, Video
from gatito.pages import data_uri, legend, modality_legend, png_uri, section, table, timestep_chips, write_page

NUM_ANSWERS, NUM_WRONG = 24, 8
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
    evaluations: Path | None = None
    """`evaluations.jsonl` of the run: scores while it was trained."""
    timesteps: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Source name to the rows of one timestep, see `token_rows`."""
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Source name to the image (H, W, C) uint8 observed at this timestep."""
    videos: Sequence[Video] = ()
    """Episodes, one MP4 file each."""
    attention: Sequence[AttentionView] = ()
    """What the model looked at in chosen timesteps."""
    answers: Sequence[Answer] = ()
    """Captions and answers that were written."""
    texts: Sequence[str] = ()
    """Sampled continuations."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Name to value: parameters, machine and the like."""
    next_commands: Sequence[str] = ()
    """Commands as typed."""


def write_report(report: Report, path: Path) -> None:
    """Write the page, whole or not at all."""
    sections = [
        at_a_glance(report.results, report.facts),
        what_went_wrong(report.results),
        tasks_above_expert(report.results),
        by_domain(report.results),
        by_prompt(report.results),
        by_order(report.results),
        _learning(report.metrics, report.evaluations, report.results),
        _videos(report.videos),
        _attention(report.attention),
        _tokens(report.timesteps, report.images),
        _language(report.results, report.answers),
        _texts(report.texts),
        all_tasks(report.results),
        without_score(report.results),
        _minutes(report.results.seconds),
        _commands(report.next_commands),
    ]
    write_page(path, "gatito.eval", title=report.title, sections=sections)


def _learning(metrics: Path | None, evaluations: Path | None, results: Results) -> str:
    rows = read_metrics(metrics) if metrics else []
    played = read_metrics(evaluations) if evaluations else []
    domains = sorted({row.domain for row in results.tasks})
    lead = (
        "Over training steps; the legend gives the last value. Losses are by the ids of the target: continuous and "
        "discrete targets are actions, text targets are captions and documents."
    )
    body = score_curves(played, domains) + (learning_curves(rows) if rows else "")
    return section("Learning", lead, body) if body else ""


def _videos(videos: Sequence[Video]) -> str:
    figures = []
    for v in sorted(videos, key=lambda v: not v.failed):
        note = f'<br><span class="wrong">{escape(v.note)}</span>' if v.note else ""
        words = "no success" if v.score is None else f"below {FAILED_BELOW:g}"
        failed = f' <span class="wrong">{words}</span>' if v.failed else ""
        figures.append(
            f'<figure><video controls muted loop playsinline preload="metadata" '
            f'aria-label="{escape(v.task)}: {escape(v.caption)}" '
            f'src="{data_uri("video/mp4", v.path.read_bytes())}"></video>'
            f"<figcaption><b>{escape(v.task)}</b>{failed}<br>{escape(v.caption)}{note}</figcaption></figure>"
        )
    lead = (
        f"Episodes, those with a score below {FAILED_BELOW:g} first: nearer to the random policy than to the expert."
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


def _language(results: Results, answers: Sequence[Answer]) -> str:
    """A table of the sources, and below it what was written for some of each, wrong ones first."""
    if not results.language and not answers:
        return ""
    head = ("source", "documents", "exact (95 %)", "always the commonest", "BLEU", "bits a byte", "unigrams")
    cells = []
    for s in results.language:
        right = ("", "", "")
        if s.exact is not None:
            right = (f"{s.exact:.1%} ({s.ci_low:.1%} to {s.ci_high:.1%})", f"{s.commonest:.1%}", f"{s.bleu:.1f}")
        bits = f"{s.bits_per_byte:.2f}", f"{s.unigram_bits_per_byte:.2f}"
        cells.append((s.source, str(s.documents), *right, *bits))
    parts = [table(head, cells, "Captions, answers and texts, by source")] if cells else []
    for source, group in groupby(answers, lambda answer: answer.source):
        parts.append(_written(source, list(group)))
    lead = (
        "An answer is exact where it is right to the letter, written greedily. Unigrams are the frequencies of the "
        "very tokens that are predicted: no model without a context does better."
    )
    return section("Language", lead, "".join(parts))


def _written(source: str, answers: Sequence[Answer]) -> str:
    wrong = [a for a in answers if a.written != a.expected]
    right = [a for a in answers if a.written == a.expected]
    shown = [*wrong[: max(NUM_WRONG, NUM_ANSWERS - len(right))], *right][:NUM_ANSWERS]
    figures = []
    for a in shown:
        is_wrong = a.written != a.expected
        expected = f"<br>wrong, expected: {escape(a.expected)}" if is_wrong else ""
        image = "" if a.image is None else f'<img alt="{escape(a.expected)}" src="{png_uri(a.image)}">'
        prompt = f"{escape(a.prompt)}<br>" if a.prompt else ""
        figures.append(
            f"<figure{' class=wrong' if is_wrong else ''}>{image}"
            f"<figcaption>{prompt}<b>{escape(a.written) or '(nothing)'}</b>{expected}</figcaption></figure>"
        )
    words = f"{len(shown)} of {len(answers)}; of the {len(wrong)} wrong ones the first lead."
    return f'<h3>{escape(source)}</h3><p>{words}</p><div class="figures captions">{"".join(figures)}</div>'


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
