"""Episodes to look at, timestep by timestep: frames or curves, and beside them what was done and what came of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gatito.data.episode import Episode
from gatito.pages import legend, number, png_uri, shortened
from gatito.tokenizers import Layout
from gatito.tokenizers.fields import Field, value_at
from gatito.tokenizers.patches import from_patches, to_patches

MAX_TIMESTEPS = 200
"""Timesteps of one episode; of longer ones evenly many are left out."""
MAX_BYTES = 600_000
"""Of one episode on the page; timesteps are left out until it is smaller."""
MAX_SIDE = 160
"""Pixels of a frame; larger ones are shrunk."""
MAX_IMAGES, MAX_CURVES, MAX_LINES, MAX_ROWS = 3, 9, 6, 12
"""Image fields in a frame, fields with curves, elements of a field with a curve each, and fields with a row."""
MAX_ELEMENTS = 8
"""Elements of a value that are written."""
CURVE = 80
"""Pixels of a curve."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Player:
    """One episode on the page."""

    episode: Episode
    """In the environment's units."""
    layout: Layout
    """Of its dataset."""
    words: str
    """Why it is shown, such as `best of expert`."""

    def html(self) -> str:
        """A figure that `player.js` brings to life."""
        shown = min(MAX_TIMESTEPS, len(self.episode))
        figure = self._figure(shown)
        while (size := len(figure.encode("utf-8", "replace"))) > MAX_BYTES and shown > 2:
            shown = max(2, int(0.95 * shown * MAX_BYTES / size))
            figure = self._figure(shown)
        return figure

    def _figure(self, count: int) -> str:
        T = len(self.episode)
        shown = np.unique(np.linspace(0, T - 1, count).round().astype(int))
        e = self.episode
        length = f"{T} timesteps" if len(shown) == T else f"{T} timesteps, {len(shown)} of them shown"
        caption = f"episode {e.id}, agent {e.agent}, return {number(e.total_return)}, {length}"
        images = [field for field in self.layout.observations if field.kind == "image"][:MAX_IMAGES]
        picture, frames = self._frames(images, shown) if images else (self._curves(shown), None)
        data = {"timesteps": shown.tolist(), "last": T - 1, "frames": frames, "rows": self._rows(shown)}
        now = '<dl class="now"></dl>'
        shown_beside = f'<div class="beside"><div>{picture}</div>{now}</div>' if images else f"{picture}{now}"
        return (
            f'<figure class="player{"" if images else " plain"}"><h3>{escape(self.words)}</h3>'
            f"<figcaption>{escape(caption)}</figcaption>{shown_beside}"
            '<div class="controls"><button type="button">play</button>'
            f'<input type="range" min="0" max="{len(shown) - 1}" value="0" aria-label="timestep">'
            f'<output></output></div><script type="application/json">{embedded(data)}</script></figure>'
        )

    def _frames(self, fields: Sequence[Field], shown: NDArray[np.int64]) -> tuple[str, dict[str, int]]:
        """All frames in one image, and how to find them in it."""
        strips = [_shrunk(_rgb(np.asarray(value_at(self.episode.observations, f.path))[shown])) for f in fields]
        height = max(strip.shape[1] for strip in strips)
        padded = [np.pad(s, ((0, 0), (0, height - s.shape[1]), (0, 0), (0, 0))) for s in strips]
        frames = np.concatenate(padded, axis=2)  # (n, height, width, 3)
        n, _, width, _ = frames.shape
        columns = math.ceil(math.sqrt(n))
        sheet = np.zeros((-(-n // columns) * columns, height, width, 3), np.uint8)
        sheet[:n] = frames
        tiled = sheet.reshape(-1, columns, height, width, 3).transpose(0, 2, 1, 3, 4)
        names = ", ".join(f"{f.name or 'image'} {f.shape[0]}x{f.shape[1]}" for f in fields)
        picture = (
            f'<canvas width="{width}" height="{height}" role="img" aria-label="the image observed"></canvas>'
            f'<img hidden alt="all frames" src="{_sheet_uri(tiled.reshape(-1, columns * width, 3))}">'
            f"<small>{escape(names)}</small>"
        )
        return picture, {"width": width, "height": height, "columns": columns}

    def _curves(self, shown: NDArray[np.int64]) -> str:
        """Small line charts of what can be drawn."""
        charts = [
            _curve(
                name, np.asarray(value, np.float64).reshape(len(self.episode), -1)[shown], steps=kind == "discrete"
            )
            for name, kind, value in self._values()
            if kind in ("continuous", "discrete")
        ]
        more = len(charts) - MAX_CURVES
        note = f"<small>{more} more fields are not drawn</small>" if more > 0 else ""
        return f'<div class="charts">{"".join(charts[:MAX_CURVES])}</div>{note}'

    def _values(self) -> list[tuple[str, str, Any]]:
        """Name, kind and values of what is neither image nor token: actions and rewards first."""
        e = self.episode
        actions = [(f"action {f.name}".rstrip(), f.kind, value_at(e.actions, f.path)) for f in self.layout.actions]
        rewards = [("reward", "continuous", e.rewards)]
        seen = [(f.name or "observation", f.kind, value_at(e.observations, f.path)) for f in self.layout.observations]
        texts_first = sorted(seen, key=lambda value: value[1] != "text")
        return [*actions, *rewards, *(value for value in texts_first if value[1] != "image")]

    def _rows(self, shown: NDArray[np.int64]) -> list[tuple[str, list[str]]]:
        """Name and what is written at each timestep shown; once where it is always the same."""
        values = self._values()
        values.insert(len(self.layout.actions) + 1, ("return so far", "continuous", np.cumsum(self.episode.rewards)))
        if not self.episode.targets.all():
            values.append(("imitated", "text", ["yes" if target else "no" for target in self.episode.targets]))
        rows = [(name, [_written(kind, value[t]) for t in shown]) for name, kind, value in values[:MAX_ROWS]]
        return [(name, words[:1] if len(set(words)) == 1 else words) for name, words in rows]


def first_image(episode: Episode, layout: Layout) -> NDArray[np.uint8] | None:
    """The image (H, W, 3) that is observed first, if there is one."""
    for field in layout.observations:
        if field.kind == "image":
            images: NDArray[np.uint8] = np.asarray(value_at(episode.observations, field.path))
            return _rgb(images[:1])[0]
    return None


def embedded(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _written(kind: str, value: Any) -> str:
    if kind == "text":
        return shortened(value)
    numbers = np.asarray(value).reshape(-1)
    rest = f", … ({numbers.size} values)" if numbers.size > MAX_ELEMENTS else ""
    return ", ".join(map(number, numbers[:MAX_ELEMENTS])) + rest


def _curve(name: str, values: NDArray[np.float64], *, steps: bool) -> str:
    """Lines of the elements (n, size) that vary most, over the timesteps shown; the cursor is moved by the script."""
    most = np.sort(np.argsort(-values.std(axis=0), kind="stable")[:MAX_LINES])
    low, high = float(values[:, most].min()), float(values[:, most].max())
    down = (high - values[:, most]) / (high - low) if high > low else np.full((len(values), len(most)), 0.5)
    lines = "".join(f'<polyline class="s{i}" points="{_points(ys, steps)}"/>' for i, ys in enumerate(down.T))
    plot = f'<svg viewBox="0 0 1 1" preserveAspectRatio="none" height="{CURVE}" width="100%">{lines}</svg>'
    ends = f'<text x="0" y="-3">{number(high)}</text>'
    ends += f'<text x="0" y="{CURVE + 14}">{number(low)}</text>' if high > low else ""
    cursor = f'<line class="cursor" x1="0" x2="0" y1="0" y2="{CURVE}"/>'
    of = f", the {len(most)} of {values.shape[1]} elements that vary most" if values.shape[1] > len(most) else ""
    names = legend({f"s{i}": str(e) for i, e in enumerate(most)}) if len(most) > 1 else ""
    label = escape(name + of)
    return (
        f'<div><small>{label}</small><svg class="curve" height="{CURVE + 18}" role="img" aria-label="{label}">'
        f"{ends}{plot}{cursor}</svg>{names}</div>"
    )


def _points(ys: NDArray[np.float64], steps: bool) -> str:
    """A line through values (n,) from left to right; with `steps` each is held until the next."""
    xs = np.linspace(0.0, 1.0, max(2, len(ys)))
    ys = np.resize(ys, len(xs))  # of one timestep a line, too
    if steps:
        xs, ys = np.repeat(xs, 2)[1:], np.repeat(ys, 2)[:-1]
    return " ".join(f"{x:.4f},{y:.4f}" for x, y in zip(xs, ys, strict=True))


def _rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (n, H, W, C) as the model sees them, in three channels."""
    _, H, W, _ = images.shape
    return from_patches(to_patches(images), (H, W, 3))


def _shrunk(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _, H, W, _ = images.shape
    factor = MAX_SIDE / max(H, W)
    if factor >= 1:
        return images
    size = max(1, round(W * factor)), max(1, round(H * factor))
    return np.stack([np.asarray(Image.fromarray(image).resize(size)) for image in images])


def _sheet_uri(pixels: NDArray[np.uint8]) -> str:
    """Data URI of all frames, in 256 colours where it would be large."""
    uri = png_uri(pixels)
    return uri if len(uri) < MAX_BYTES // 2 else png_uri(pixels, colours=256)
