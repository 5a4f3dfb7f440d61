"""What the pages share that are written for people: head and style, sections, images, tokens as chips.

A page is one file that needs no other and asks no network. Its texts come from files and models: all are escaped, and
its content security policy runs the page's own script alone.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

MODALITIES = {
    "text": "a piece of text",
    "continuous": "a number, in one of 1024 bins",
    "discrete": "one of a few values",
    "separator": "between observation and action",
    "patch": "16x16 pixels",
}
"""What each colour of token stands for."""
MAX_LETTERS = 200
"""Of a text that may be of any length."""
MAX_CHIPS = 60
"""Tokens of a timestep that are shown before the rest folds away."""


def write_page(path: Path, package: str, *, title: str, sections: Iterable[str], script: str = "") -> None:
    """Write the page of a package's `report.html`, whole or not at all; empty sections are left out."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"; script-src 'sha256-{digest}'" if script else ""
    head = _template("gatito", "page.html").substitute(title=escape(title), policy=policy)
    body = "\n".join(filter(None, sections))
    page = _template(package, "report.html").substitute(head=head, title=escape(title), sections=body, script=script)
    temporary = path.with_suffix(".partial")
    temporary.write_text(page, encoding="utf-8", errors="replace")  # files may hold halves of surrogate pairs
    temporary.rename(path)


def _template(package: str, name: str) -> Template:
    return Template(files(package).joinpath(name).read_text(encoding="utf-8"))


def section(title: str, lead: str, body: str) -> str:
    """A part of the page under its heading; `lead` and `body` are HTML."""
    return f'<section>\n<h2>{title}</h2>\n<p class="lead">{lead}</p>\n{body}\n</section>'


def facts_list(facts: Mapping[str, str]) -> str:
    """Names over their values."""
    return f"<dl>{''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items())}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, words: Sequence[str] = ()) -> str:
    """Rows of texts under their names, in a frame of their own that scrolls where the page is narrow.

    The columns named in `words` are read from the left, as are the first two.
    """
    kinds = [' class="words"' if name in words else "" for name in head]
    names = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    lines = (zip(kinds, row, strict=True) for row in rows)
    body = "\n".join(f"<tr>{''.join(f'<td{kind}>{escape(cell)}</td>' for kind, cell in line)}</tr>" for line in lines)
    drawn = f"<table><thead><tr>{names}</tr></thead><tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{drawn}</div>'


def legend(names: Mapping[str, str]) -> str:
    """Colour swatches: class to words."""
    items = "".join(
        f'<span class="{escape(key)}"><i class="swatch"></i><span>{escape(words)}</span></span>'
        for key, words in names.items()
    )
    return f'<div class="legend">{items}</div>'


def modality_legend() -> str:
    """The colours of tokens."""
    return legend({name: f"{name}: {words}" for name, words in MODALITIES.items()})


def share(x: float, low: float, high: float) -> float:
    """Where x is between low (0) and high (1); what lies outside is put at the end."""
    return (min(high, max(low, x)) - low) / (high - low)


def number(x: float) -> str:
    """Four digits, or all that stand before the point where they are up to nine."""
    return f"{x:,.0f}" if 9999.5 <= abs(x) < 1e9 else f"{x + 0.0:.4g}"  # no negative zero


def shortened(text: str) -> str:
    """The beginning of a long text."""
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}…"


def timestep_chips(name: str, rows: Sequence[Mapping[str, Any]], image: np.ndarray | None = None) -> str:
    """One timestep as tokens, from rows of `token_rows`, with the image (H, W, C) uint8 that was observed."""
    targets = sum(row["loss_mask"] for row in rows)
    parts = [f"<h3>{escape(name)}</h3><small>{len(rows)} tokens, {targets} of them targets</small>"]
    if image is not None:
        parts.append(f'<img class="observed" alt="the image observed" src="{png_uri(image)}">')
    parts.append(f'<ol class="chips">{"".join(map(_chip, rows[:MAX_CHIPS]))}</ol>')
    if rest := rows[MAX_CHIPS:]:
        parts.append(f"<details><summary>{len(rest)} more tokens</summary>")
        parts.append(f'<ol class="chips">{"".join(map(_chip, rest))}</ol></details>')
    return "\n".join(parts)


def _chip(row: Mapping[str, Any]) -> str:
    modality, meaning = escape(row["modality"]), escape(row["meaning"])
    inline = f"<small>{meaning}</small>" if row["modality"] != "patch" else ""
    token, target = ("patch" if row["id"] is None else row["id"]), " target" if row["loss_mask"] else ""
    title = f"{modality}{',' * bool(target)}{target}, local position {row['local_position']}: {meaning}"
    return f'<li class="{modality}{target}" title="{title}">{token}{inline}</li>'


def data_uri(media_type: str, content: bytes) -> str:
    """A file of this type, such as `video/mp4`, to stand where a page names one."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def png_uri(pixels: np.ndarray, colours: int | None = None) -> str:
    """Data URI of an image (H, W, C) uint8 with one or three channels, reduced to so many `colours`."""
    picture, file = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), io.BytesIO()
    if colours is not None:  # an octree takes a hundredth of the time of a median cut
        picture = picture.quantize(colours, Image.Quantize.FASTOCTREE)
    picture.save(file, "PNG")
    return data_uri("image/png", file.getvalue())
