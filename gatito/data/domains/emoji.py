"""Captions of symbols: the emoji of a font on this machine, with their Unicode names.

emoji:              Noto Color Emoji, Apple Color Emoji or Symbola, whichever is found first
emoji:FONT.ttf      any TrueType or OpenType font; the symbols that it has
"""

import os
import unicodedata
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from gatito.data.document_source import DocumentSource, identity_of_files
from gatito.errors import UserError, reason_of
from gatito.tokenizers.documents import Document, captioned

FONTS = ("NotoColorEmoji.ttf", "Apple Color Emoji.ttc", "Symbola.ttf", "Symbola_hint.ttf")
"""Files that `emoji:` looks for, colour first."""
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/System/Library/Fonts", "~/.local/share/fonts", "~/.fonts")
"""Where fontconfig and macOS keep fonts."""
SIDE = 32
"""Pixels along a side: four patches."""
BLOCKS = (
    range(0x2600, 0x27C0),
    range(0x1F300, 0x1F650),
    range(0x1F680, 0x1F700),
    range(0x1F900, 0x1FA00),
    range(0x1FA70, 0x1FB00),
)
"""Code points of symbols, dingbats, pictographs, faces, transport and their supplements."""
_SIZES = (SIDE, 109, 160, 96)
"""Of outlines first; colour fonts hold bitmaps of one size each, Noto's 109 and Apple's 160 or 96 pixels."""
_NO_CHARACTER = "\U0010ffff"


def open_emoji(location: str) -> DocumentSource:
    """A document for each symbol of the font; raises `UserError` where there is no font, or none of them in it."""
    path = Path(location) if location else _found()
    font = _opened(path)

    def documents() -> Iterator[Document]:
        return (captioned(image, name) for image, name in named_symbols(font))

    if next(documents(), None) is None:
        raise UserError(f"emoji:{path}: the font has none of the symbols; name one that has, such as {FONTS[0]}")
    return DocumentSource(
        kind="pairs",
        rows=documents,
        identity=lambda: identity_of_files([path], unicodedata.unidata_version),
    )


def named_symbols(font: ImageFont.FreeTypeFont) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Picture (32, 32, 3) and name, such as `black sun with rays`, of each symbol that the font has."""
    missing = bytes(font.getmask(_NO_CHARACTER))
    for code in chain(*BLOCKS):
        name = unicodedata.name(chr(code), "")
        mask = font.getmask(chr(code))
        if name and mask.getbbox() and bytes(mask) != missing:
            yield _picture(chr(code), font), name.lower()


def _picture(symbol: str, font: ImageFont.FreeTypeFont) -> NDArray[np.uint8]:
    """Black or coloured, on white, in the middle of a square."""
    left, top, right, bottom = font.getbbox(symbol)
    side = int(max(right - left, bottom - top)) + 2
    square = Image.new("RGB", (side, side), "white")
    place = ((side - right - left) / 2, (side - bottom - top) / 2)
    ImageDraw.Draw(square).text(place, symbol, font=font, fill="black", embedded_color=True)
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.HAMMING))


def _found() -> Path:
    folders = [Path(folder).expanduser() for folder in FOLDERS]
    there = {name: Path(root) / name for folder in folders for root, _, names in os.walk(folder) for name in names}
    path = next((there[name] for name in FONTS if name in there), None)
    if path is None:
        raise UserError(
            f"emoji: none of {', '.join(FONTS)} is in {', '.join(FOLDERS)}; install a font "
            "(fonts-noto-color-emoji), or name one: emoji:FONT.ttf"
        )
    return path


def _opened(path: Path) -> ImageFont.FreeTypeFont:
    reason = ""
    for size in _SIZES:
        try:
            return ImageFont.truetype(path, size)
        except OSError as error:
            reason = reason_of(error)
    raise UserError(f"emoji:{path}: no font that can be read ({reason}); name a .ttf or .otf file")
