"""One self-contained page on a dataset: what is in it, what is wrong with it, and episodes to look at."""

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gatito.data.checks import checked_tokens
from gatito.data.explain import token_rows
from gatito.data.histograms import of_field, of_integers, of_numbers, reference_axis
from gatito.data.player import Player, first_image
from gatito.data.survey import NUM_TEXTS, FieldSurvey, Survey
from gatito.pages import facts_list, modality_legend, number, section, share, shortened, timestep_chips, write_page
from gatito.tokenizers.scalars import M

MAX_AGENTS = 12
"""Source agents with a histogram of their own; all others share one."""
MAX_FIELDS = 60
"""Observation fields, and action fields, that are shown."""
MAX_PLAYERS = 6
"""Episodes to look at."""
COMMONEST = 8
"""Texts of a field that are shown."""


def write_dataset_report(seen: Survey, path: Path) -> None:
    """Write the page, whole or not at all; a few episodes are read again to be looked at."""
    chosen = _chosen(seen)
    sections = [
        _headline(seen),
        _findings(seen),
        _returns(seen),
        _lengths(seen),
        *(_fields(seen, role) for role in ("observation", "action")),
        _players(seen, chosen),
        _tokens(seen, chosen),
    ]
    script = files("gatito.data").joinpath("player.js").read_text(encoding="utf-8")
    write_page(path, "gatito.data", title=seen.source.dataset.id, sections=sections, script=script)


def _headline(seen: Survey) -> str:
    timesteps, path = sum(seen.lengths), seen.source.path
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    agents = Counter(seen.agents).most_common()
    named = [f"{agent} {count:,}" for agent, count in agents[:MAX_AGENTS]]
    rest = f" and {len(agents) - MAX_AGENTS} more" if len(agents) > MAX_AGENTS else ""
    cards = {"episodes": len(seen.lengths), "timesteps": timesteps, "tokens": seen.tokens}
    facts = {
        "task": seen.source.task,
        "licence of the simulator": seen.source.license or "not stated",
        "timesteps of an episode": f"{timesteps / max(1, len(seen.lengths)):.1f} on average, "
        f"{max(seen.lengths, default=0):,} at most",
        "tokens of a timestep": f"{seen.tokens / max(1, timesteps):.1f} on average, {seen.longest:,} at most",
        "on disk": _bytes(size),
        "source agents, in episodes": ", ".join(named) + rest or "none",
        "folder": str(path),
    }
    numbers = "".join(f"<div><b>{count:,}</b>{name}</div>" for name, count in cards.items())
    lead = "What the dataset holds, of all episodes that can be trained on."
    return section("At a glance", lead, f'<div class="cards">{numbers}</div>{facts_list(facts)}')


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"


def _findings(seen: Survey) -> str:
    items = "".join(
        f'<li class="{f.level}"><b>{f.level}</b> <small>{escape(f.kind)}</small><br>{escape(f.text)}</li>'
        for f in seen.findings
    )
    lead = "An error does not train; a warning may be meant."
    return section("Findings", lead, f'<ul class="findings">{items}</ul>' if items else "<p>Nothing found.</p>")


def _returns(seen: Survey) -> str:
    if not seen.returns:
        return ""
    known = seen.reference
    marks = [("random", known.random), ("expert", known.expert)] if known else []
    low, high = _range([*seen.returns, *(value for _, value in marks)])
    lines = [share(value, low, high) for _, value in marks]
    rows = [("", reference_axis(low, high, marks))] if marks else []
    for agent, returns in _groups(seen):
        drawn = of_numbers(returns, low, high).svg("episodes", f"returns of {agent}", lines)
        words = f"{len(returns):,} episodes<br>mean return {number(returns.mean())}"
        words += f"<br>mean score {known.score(returns).mean():.2f}" if known else ""
        rows.append((f"<b>{escape(agent)}</b><small>{words}</small>", drawn))
    body = "".join(f'<div class="multiple"><div>{name}</div>{drawn}</div>' for name, drawn in rows)
    lead = "The sum of rewards of each episode, by source agent; the number at the top is that of the tallest bar."
    if known:
        lead += " Lines are the mean returns of the random policy (score 0) and of the expert (score 1)."
    return section("Returns", lead, body)


def _range(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _groups(seen: Survey) -> list[tuple[str, NDArray[np.float64]]]:
    """Source agents and returns, the commonest first, and the rare ones of many as one."""
    groups = sorted(seen.by_agent(), key=lambda group: -len(group[1]))
    if len(groups) <= MAX_AGENTS:
        return groups
    rare = groups[MAX_AGENTS:]
    return [*groups[:MAX_AGENTS], (f"{len(rare)} others", np.concatenate([returns for _, returns in rare]))]


def _lengths(seen: Survey) -> str:
    if not seen.lengths:
        return ""
    drawn = of_integers(np.array(seen.lengths)).svg("episodes", "episode lengths")
    lead = f"Timesteps of an episode; the median is {np.median(seen.lengths):g}."
    return section("Episode lengths", lead, f'<div class="s0">{drawn}</div>')


def _fields(seen: Survey, role: str) -> str:
    found = [f for f in seen.fields if f.role == role]
    cards = "".join(_field(seen, f) for f in found[:MAX_FIELDS])
    more = f"<p>{len(found) - MAX_FIELDS} more fields are not shown.</p>" if len(found) > MAX_FIELDS else ""
    lead = {
        "observation": "All timesteps and all elements of a field together. Bars are even in the bins by which the "
        "model tells values apart; the axis is in the environment's units.",
        "action": "What the model learns to do, drawn in the same way.",
    }[role]
    return section(f"{role.capitalize()} fields", lead, f'<div class="fields">{cards}</div>{more}')


def _field(seen: Survey, f: FieldSurvey) -> str:
    name = escape(f.leaf.name or f.role)
    numbers = " x ".join([*map(str, f.leaf.shape), f.leaf.dtype])
    kind = "text" if f.leaf.kind == "text" else f"{f.leaf.kind}, {numbers}"
    head = f"<figcaption><b>{name}</b>{escape(kind)}</figcaption>"
    if not f.num_values:
        return f"<figure>{head}<small>no values</small></figure>"
    if f.leaf.kind == "text":
        return f"<figure>{head}{_texts(f)}</figure>"
    histogram, note = of_field(f, seen.layout.vocabulary)
    notes = "".join(f"<li>{escape(words)}</li>" for words in filter(None, [note, *_notes(f)]))
    colour = "patch" if f.leaf.kind == "image" else f.leaf.kind
    drawn = histogram.svg("values", f"values of {f.leaf.name or f.role}")
    return f'<figure>{head}<div class="{colour}">{drawn}</div><ul>{notes}</ul></figure>'


def _notes(f: FieldSurvey) -> Iterator[str]:
    """What the bars of a field do not show."""
    low, high = float(np.min(f.low)), float(np.max(f.high))
    if f.leaf.kind == "image":
        if low == high:
            yield "constant: one brightness in all pixels"
        if f.counts.sum() < f.num_values:
            yield f"{f.counts.sum():,} of {f.num_values:,} values are counted"
        return
    if f.constant:
        count = f"{len(f.constant)} of {f.leaf.size} elements: " if f.leaf.size > 1 else ""
        yield f"constant: {count}one value in all timesteps"
    occurring = np.count_nonzero(f.counts)
    if f.leaf.kind == "continuous":
        yield f"from {number(low)} to {number(high)}, in {occurring:,} of {len(f.counts):,} bins"
        if any(f.leaf.mu_law) and max(high, -low) > M:
            yield f"values beyond {M:g} are in the last bin"
        if f.role == "action":
            yield f"{f.at_bounds / f.num_values:.1%} of the values lie on their bounds"
    else:
        yield f"{occurring:,} of {len(f.counts):,} values occur"


def _texts(f: FieldSurvey) -> str:
    shown = f.texts.most_common(COMMONEST)
    rows = [(n, escape(shortened(text)) or "<i>empty</i>") for text, n in shown]
    if rest := f.num_values - sum(n for n, _ in rows):
        rows.append((rest, "<i>all others</i>"))
    items = "".join(f"<li><span>{n:,}</span><span>{words}</span></li>" for n, words in rows)
    most = "at least " if len(f.texts) >= NUM_TEXTS else ""
    return f'<small>{most}{len(f.texts):,} texts, in timesteps</small><ol class="texts">{items}</ol>'


def _chosen(seen: Survey) -> list[tuple[int, str]]:
    """Episodes of the source to look at, each with why: best, worst and median return of each agent, best first."""
    ids, agents = seen.ids, [agent for agent, _ in _groups(seen)]
    chosen: dict[int, tuple[str, str]] = {}
    for which, share_of in (("best", 1.0), ("worst", 0.0), ("median", 0.5)):
        for agent in agents:
            ranked = sorted((i for i, a in enumerate(seen.agents) if a == agent), key=lambda i: seen.returns[i])
            if ranked and len(chosen) < MAX_PLAYERS:
                chosen.setdefault(ranked[round(share_of * (len(ranked) - 1))], (agent, which))
    listed = sorted(chosen.items(), key=lambda item: (agents.index(item[1][0]), -seen.returns[item[0]]))
    return [(ids[i], f"{which} of {agent}") for i, (agent, which) in listed]


def _players(seen: Survey, chosen: Sequence[tuple[int, str]]) -> str:
    lead = f"Best and worst return of each source agent, then the median: at most {MAX_PLAYERS} episodes."
    figures = "".join(  # one episode in memory at a time
        Player(episode=seen.source.episode(index), layout=seen.layout, words=words).html() for index, words in chosen
    )
    needs = "<noscript><p>The player needs JavaScript.</p></noscript>"
    return section("Episodes", lead, f'{needs}<div class="players">{figures}</div>') if chosen else ""


def _tokens(seen: Survey, chosen: Sequence[tuple[int, str]]) -> str:
    if not chosen:
        return ""
    episode, layout = seen.source.episode(chosen[0][0]), seen.layout
    sequence, _ = checked_tokens(layout, episode, where=str(seen.source.path))
    first = sequence.timesteps(0, 1, layout.vocabulary.patch)
    rows = token_rows(first, layout.vocabulary, layout.text, layout)
    chips = timestep_chips(f"episode {episode.id}, timestep 0", rows, first_image(episode, layout))
    lead = "One timestep as the model reads it. Framed tokens are targets: the model learns to predict them."
    return section("From timesteps to tokens", lead, f"{modality_legend()}{chips}")
