"""Images with text out of files of yours and of `datasets` datasets: captions, questions, conversations, documents.

    captions:FOLDER        metadata.jsonl with `file_name` and `text`, or NAME.txt beside NAME.png
    questions:FOLDER       metadata.jsonl with `file_name`, `question` and `answer`
    captions:SHARDS/*.tar  WebDataset's layout: NAME.jpg, then NAME.txt or NAME.json with `text`; questions: alike
    captions:hf:...        columns `image` and `text`; questions:hf:...: `image`, `question` and `answer`
    chat:FILE.jsonl        {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"},
                               {"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A cat."}]}
    interleaved:FILE.jsonl {"content": [{"type": "text", "text": "..."}, {"type": "image", "path": "a.png"}, ...]}

Other columns are named behind `#`: `captions:FOLDER#caption`, `questions:hf:OWNER/NAME#query,label`. Files of images
are named relative to the folder of the file that names them, and lie below it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data import archives
from gatito.data.below import check_below
from gatito.data.document_source import DocumentSource, files_at, identity_of_files
from gatito.data.domains.texts import whole_text
from gatito.data.rows import SUFFIXES as ROW_SUFFIXES
from gatito.data.rows import Row, columns_of, hub_identity, hub_rows, rows_of
from gatito.errors import UserError
from gatito.tokenizers.chat import Read, interleaved, read_content, read_messages
from gatito.tokenizers.documents import Document, Words, captioned, conversation
from gatito.tokenizers.images import SUFFIXES, ImageConfig, read_image

METADATA = "metadata.jsonl"
IMAGE_COLUMNS = ("file_name", "image", "images")
"""Of which one holds the image of a row, or several."""

Image = NDArray[np.uint8]


def open_captions(location: str, config: ImageConfig) -> DocumentSource:
    """Images, each with a text to learn."""
    place, (column,) = columns_of(location, "text")
    if Path(place).is_dir() and not (Path(place) / METADATA).is_file():
        return _captions_beside(Path(place), config)
    return _pairs_of_rows("captions", place, lambda row: _caption(row, column, config), [column])


def open_questions(location: str, config: ImageConfig) -> DocumentSource:
    """Images, each with a question and an answer to learn."""
    place, (question, answer) = columns_of(location, "question", "answer")

    def document(row: Row) -> Document:
        return conversation([([*_images(row, config), row.text(question)], _filled(row, answer))])

    return _pairs_of_rows("questions", place, document, [question, answer])


def open_chat(location: str, config: ImageConfig) -> DocumentSource:
    """Conversations, of which the assistant's turns are to be learned."""
    return _long_of_rows("chat", location, "messages", partial(_conversation, config=config))


def open_interleaved(location: str, config: ImageConfig) -> DocumentSource:
    """Documents of texts and images, of which all texts are to be learned."""

    def document(row: Row, column: str) -> Document:
        where = f"{row.where}: {column}"
        with _pictures(row) as pictures:
            return interleaved(read_content(row.value(column), where, _reader(row, config), pictures))

    return _long_of_rows("interleaved", location, "content", document)


def _pairs_of_rows(
    scheme: str, place: str, document: Callable[[Row], Document], columns: Sequence[str]
) -> DocumentSource:
    if place.startswith("hf:"):
        name = place.removeprefix("hf:")
        return DocumentSource(
            kind="pairs",
            rows=lambda: hub_rows(name),
            document=document,
            identity=partial(hub_identity, name, *columns),
        )
    if place.endswith(archives.SUFFIX):
        files = files_at(place)
        return DocumentSource(
            kind="pairs",
            rows=lambda: chain.from_iterable(map(archives.tar_rows, files)),
            document=document,
            identity=lambda: identity_of_files(files, *columns),
        )
    file = Path(place) / METADATA
    if not file.is_file():
        raise UserError(f"{scheme}:{place}: {file} is missing; or name a dataset, {scheme}:hf:OWNER/NAME")
    return DocumentSource(
        kind="pairs",
        rows=lambda: rows_of(file),
        document=document,
        identity=lambda: identity_of_files([file, *_images_below(file.parent)], *columns),
    )


def _long_of_rows(
    scheme: str, location: str, default: str, document: Callable[[Row, str], Document]
) -> DocumentSource:
    place, (column,) = columns_of(location, default)
    if place.startswith("hf:"):
        name = place.removeprefix("hf:")
        return DocumentSource(
            kind="documents",
            rows=lambda: hub_rows(name),
            document=lambda row: document(row, column),
            identity=partial(hub_identity, name, column),
        )
    file = Path(place)
    if file.suffix not in ROW_SUFFIXES or not file.is_file():
        raise UserError(f"{scheme}:{place}: expected a file that is there, of {', '.join(ROW_SUFFIXES)}")
    return DocumentSource(
        kind="documents",
        rows=lambda: rows_of(file),
        document=lambda row: document(row, column),
        identity=lambda: identity_of_files([file, *_images_below(file.parent)], column),
    )


def _captions_beside(folder: Path, config: ImageConfig) -> DocumentSource:
    """Captions in files of their own, beside the images."""
    images = [check_below(image, folder) for image in _images_below(folder)]
    if not images:
        raise UserError(f"captions:{folder}: the folder holds neither {METADATA} nor images with .txt files beside")
    texts = [image.with_suffix(".txt") for image in images]
    missing = next((text for text in texts if not text.is_file()), None)
    if missing is not None:
        raise UserError(f"captions:{folder}: {missing} is missing; each image needs its caption, or write {METADATA}")

    texts = [check_below(text, folder) for text in texts]

    def document(row: tuple[Path, Path]) -> Document:
        image, text = row
        caption = whole_text(text).strip()
        if not caption:
            raise UserError(f"{text}: the caption is empty; write it, or leave its image out")
        return captioned(read_image(image, config, str(image)), caption)

    return DocumentSource(
        kind="pairs",
        rows=lambda: zip(images, texts, strict=True),
        document=document,
        identity=lambda: identity_of_files(chain(images, texts)),
    )


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _caption(row: Row, column: str, config: ImageConfig) -> Document:
    return Document((*_images(row, config), Words(text=_filled(row, column))))


def _filled(row: Row, column: str) -> str:
    text = row.text(column)
    if not text.strip():
        raise UserError(f"{row.where}: {column!r} is empty; write it, or leave the row out")
    return text


def _images(row: Row, config: ImageConfig) -> list[Image]:
    """The image of a row, or its several."""
    column = next((name for name in IMAGE_COLUMNS if name in row.values), None)
    if column is None:
        raise UserError(
            f"{row.where}: no image: none of {', '.join(IMAGE_COLUMNS)} is among its fields {', '.join(row.values)}"
        )
    value = row.value(column)
    values = value if isinstance(value, list) else [value]
    return [read_image(row.image(one, column), config, f"{row.where}: {column!r}") for one in values]


def _reader(row: Row, config: ImageConfig) -> Read:
    def read(value: Any, where: str) -> Image:
        place = where.removeprefix(f"{row.where}: ")
        return read_image(row.image(value, place), config, f"{row.where}: {place!r}")

    return read


@contextmanager
def _pictures(row: Row) -> Iterator[Iterator[Any]]:
    """The images of a row, for content that names none; raises `UserError` where some are shown nowhere."""
    images = row.values.get("images") or []
    if not isinstance(images, list):
        raise UserError(f"{row.where}: 'images' is a {type(images).__name__}, expected a list")
    left = iter(images)
    yield left
    if next(left, None) is not None:
        raise UserError(f"{row.where}: of its {len(images)} images not all are shown; add a piece for each")


def _conversation(row: Row, column: str, config: ImageConfig) -> Document:
    """Messages that take turns, of which the last is an assistant's."""
    with _pictures(row) as pictures:
        messages = read_messages(row.value(column), f"{row.where}: {column}", _reader(row, config), pictures)
        if len(messages.answered) < len(messages.asked):
            raise UserError(
                f"{row.where}: {column} ends with a user's message, expected an assistant's; leave it out"
            )
    return messages.document()
