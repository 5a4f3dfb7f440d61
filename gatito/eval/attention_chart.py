"""The picture of an `AttentionView`: a row for each layer, a column for each timestep, as inline SVG.

It takes its colours from the page. Where a context holds more timesteps than a page has room for, columns stand for
several; none of them for some of the prompt and some of the episode.
"""

from collections.abc import Iterator
from html import escape

import numpy as np
from numpy.typing import NDArray

from gatito.eval.attention import AttentionView
from gatito.pages import legend

MAX_COLUMNS = 96
"""About as many as a phone can show."""
BANDS = ((0.0, 0.66), (0.74, 0.26))
"""Top and height, as shares of a row, of what falls on observations and on actions."""
Parts = dict[str, tuple[int, int]]
"""[first, last) timestep of what stands apart in the picture; what is empty is left out."""


def attention_picture(view: AttentionView) -> str:
    """Which timesteps each layer looked at, its shares in numbers, and what the marks mean."""
    parts = _parts(view)
    heads = "".join(f"<span>{name}</span>" for name in parts)
    rows = [f'<div class="looks axis"><span></span><span class="time"><i>oldest</i><i>now</i></span>{heads}</div>']
    for layer in range(len(view.weights)):
        shares = {name: view.weights[layer, first:last].sum() for name, (first, last) in parts.items()}
        said = escape(f"layer {layer + 1}: " + ", ".join(f"{x:.0%} on the {name}" for name, x in shares.items()))
        cells, width = _cells(view, layer, parts)
        rows.append(
            f'<div class="looks"><span>layer {layer + 1}</span>'
            f'<svg viewBox="0 0 {width:.2f} 1" preserveAspectRatio="none" height="24" role="img" aria-label="{said}">'
            f"{cells}</svg>{''.join(f'<span>{x:.0%}</span>' for x in shares.values())}</div>"
        )
    return f"{legend(_colours(view))}\n{''.join(rows)}\n<small>{_bands(view)}</small>"


def _parts(view: AttentionView) -> Parts:
    prompt, last = view.prompt_timesteps, view.weights.shape[1] - 1
    parts = {"prompt": (0, prompt), "past": (prompt, last), "now": (last, last + 1)}
    return {name: span for name, span in parts.items() if span[0] < span[1]}


def _columns(parts: Parts) -> Iterator[tuple[str, int, int, float]]:
    """Part, [first, last) timestep and left edge of each column; there is some room between parts."""
    per = -(-max(last for _, last in parts.values()) // MAX_COLUMNS)
    left = 0.0
    for name, (start, stop) in parts.items():
        for first in range(start, stop, per):
            yield name, first, min(first + per, stop), left
            left += 1.0
        left += 0.4


def _cells(view: AttentionView, layer: int, parts: Parts) -> tuple[str, float]:
    """The rectangles of a layer, and how wide they are together."""
    on_actions, right = view.action_weights[layer], 0.0
    bands = (view.weights[layer] - on_actions, on_actions) if _has_actions(view) else (view.weights[layer],)
    cells = []
    for part, first, last, left in _columns(parts):
        colour, right = "s3" if part == "prompt" else "s0", left + 1.0
        for band, (top, height) in zip(bands, BANDS if len(bands) > 1 else ((0.0, 1.0),), strict=True):
            weight = float(band[first:last].sum())
            cells.append(
                f'<rect class="{colour}" x="{left:.1f}" y="{top}" width=".92" height="{height}" '
                f'fill-opacity="{weight**0.5:.3f}"><title>{_said(view, first, last, band)}</title></rect>'
            )
    return "".join(cells), right


def _said(view: AttentionView, first: int, last: int, band: NDArray[np.float64]) -> str:
    """A cell in words."""
    in_prompt = first < view.prompt_timesteps
    offset = 0 if in_prompt else view.step + 1 - view.weights.shape[1]
    span = f"{first + offset}" if last - first == 1 else f"{first + offset} to {last - 1 + offset}"
    return f"{'prompt timestep' if in_prompt else 'step'} {span}: {band[first:last].sum():.1%}"


def _has_actions(view: AttentionView) -> bool:
    return bool(view.action_weights.any())


def _colours(view: AttentionView) -> dict[str, str]:
    """The legend: which timesteps have which colour."""
    T, prompt = view.weights.shape[1], view.prompt_timesteps
    first = view.step + 1 - (T - prompt)
    steps = f"step {view.step}, now" if first == view.step else f"steps {first} to {view.step}, which is now"
    of_prompt = {"s3": f"prompt: {prompt} timesteps of a demonstration"} if prompt else {}
    return of_prompt | {"s0": f"episode: {steps}"}


def _bands(view: AttentionView) -> str:
    """What the shades and the two bands of a row mean."""
    observed = (
        f"{view.latents} latents" if view.latents > 1 else "one latent" if view.latents else "a position a token"
    )
    if _has_actions(view):
        where = f"Upper band: the observation ({observed}), lower band: its action."
    else:
        where = f"Actions have no positions: the observation after them ({observed}) holds them."
    return f"{where} Numbers are shares of a layer's attention, shades their square roots."
