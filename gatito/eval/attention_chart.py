"""The picture of an `AttentionView`: a row for each layer, a column for each timestep, as inline SVG.

It takes its colours from the page. Where a context holds more timesteps than a page has room for, columns stand for
several; none of them for some of the prompt and some of the episode.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gatito.eval.attention import AttentionView
from gatito.pages import legend

MAX_COLUMNS = 96
"""About as many as a phone can show."""
WIDTH, GAP = 0.92, 0.4
"""Of a column, and between prompt, past and present; columns are 1 apart."""


@dataclass(frozen=True, kw_only=True)
class _Column:
    """Timesteps [first, last), drawn at `left`."""

    first: int
    last: int
    left: float
    name: str
    """What they are, in words."""
    colour: str
    """Class of the page's style."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Band:
    """A part of every row's height."""

    name: str
    top: float
    height: float
    weights: NDArray[np.float64]
    """(layers, T)."""


def attention_picture(view: AttentionView) -> str:
    """Which timesteps each layer looked at, its shares in numbers, and what the marks mean."""
    parts, columns, bands = _parts(view), _columns(view), _bands(view)
    most = max(band.weights[:, c.first : c.last].sum(1).max() for band in bands for c in columns)
    width = columns[-1].left + WIDTH
    rows = [_row("", '<span class="time"><span>oldest</span><span>newest</span></span>', parts)]
    for layer in range(len(view.weights)):
        shares = {name: f"{view.weights[layer, first:last].sum():.0%}" for name, (first, last) in parts.items()}
        said = f"layer {layer + 1}: " + ", ".join(f"{name} {x}" for name, x in shares.items())
        cells = "".join(_cell(column, band, layer, most) for column in columns for band in bands)
        svg = (
            f'<svg viewBox="0 0 {width:.2f} 1" preserveAspectRatio="none" height="24" role="img" aria-label="{said}">'
        )
        rows.append(_row(f"layer {layer + 1}", f"{svg}{cells}</svg>", shares.values()))
    return f"{_colours(view)}\n{''.join(rows)}\n<small>{_explained(view, most)}</small>"


def _row(name: str, drawn: str, shares: Iterable[str]) -> str:
    numbers = "".join(f"<span>{share}</span>" for share in shares)
    return f'<div class="looks"><span>{name}</span>{drawn}<span class="shares">{numbers}</span></div>\n'


def _cell(column: _Column, band: _Band, layer: int, most: float) -> str:
    weight = float(band.weights[layer, column.first : column.last].sum())
    return (
        f'<rect class="{column.colour}" x="{column.left:.1f}" y="{band.top}" width="{WIDTH}" height="{band.height}" '
        f'fill-opacity="{(weight / most) ** 0.5:.3f}"><title>{column.name}{band.name}: {weight:.1%}</title></rect>'
    )


def _parts(view: AttentionView) -> dict[str, tuple[int, int]]:
    """[first, last) timestep of what stands apart; what is empty is left out."""
    prompt, last = view.prompt_timesteps, view.weights.shape[1] - 1
    parts = {"prompt": (0, prompt), "past": (prompt, last), "now": (last, last + 1)}
    return {name: span for name, span in parts.items() if span[0] < span[1]}


def _columns(view: AttentionView) -> list[_Column]:
    per = -(-view.weights.shape[1] // MAX_COLUMNS)  # rounded up
    columns, left = [], 0.0
    for part, (start, stop) in _parts(view).items():
        in_prompt = part == "prompt"
        what, offset = ("prompt timestep", 0) if in_prompt else ("step", _first_step(view) - view.prompt_timesteps)
        for first in range(start, stop, per):
            last = min(first + per, stop)
            number = f"{first + offset}" if last == first + 1 else f"{first + offset} to {last - 1 + offset}"
            colour = "s3" if in_prompt else "s0"
            columns.append(_Column(first=first, last=last, left=left, name=f"{what} {number}", colour=colour))
            left += 1
        left += GAP
    return columns


def _bands(view: AttentionView) -> list[_Band]:
    if view.decoded_actions:
        return [_Band(name="", top=0.0, height=1.0, weights=view.weights)]
    observed = view.weights - view.action_weights
    return [
        _Band(name=", observation", top=0.0, height=0.66, weights=observed),
        _Band(name=", action", top=0.74, height=0.26, weights=view.action_weights),
    ]


def _first_step(view: AttentionView) -> int:
    """The oldest timestep of the episode that the context still holds."""
    return view.step + 1 - (view.weights.shape[1] - view.prompt_timesteps)


def _colours(view: AttentionView) -> str:
    first, now = _first_step(view), view.step
    steps = f"step {now}, now" if first == now else f"steps {first} to {now}, which is now"
    prompt = {"s3": f"prompt: {view.prompt_timesteps} timesteps of a demonstration"}
    return legend((prompt if view.prompt_timesteps else {}) | {"s0": f"episode: {steps}"})


def _explained(view: AttentionView, most: float) -> str:
    """What shades, bands and numbers mean."""
    positions = {0: "one position per token", 1: "one latent"}.get(view.latents, f"{view.latents} latents")
    where = f"Upper band: the observation ({positions}), lower band: its action."
    if view.decoded_actions:
        where = f"Actions have no positions: the observation after them ({positions}) holds them."
    return f"{where} Shades are square roots, the darkest is {most:.0%}; numbers are shares of a layer's attention."
