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

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.data import archives
from gatito.data.document_source import DocumentSource, files_at, identity_of_files
from gatito.data.domains.texts import whole_text
from gatito.data.rows import SUFFIXES as ROW_SUFFIXES
from gatito.data.rows import Row, columns_of, hub_identity, hub_rows, rows_of
from gatito.errors import UserError, nearest
from gatito.tokenizers.documents import Document, Words, captioned, conversation
from gatito.tokenizers.images import SUFFIXES, ImageConfig, read_image

METADATA = "metadata.jsonl"
IMAGE_COLUMNS = ("file_name", "image", "images")
"""Of which one holds the image of a row, or several."""
ROLES = ("system", "user", "assistant")

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
        content = _content(row, row.value(column), column, config, iter(()))
        return Document(tuple(Words(text=piece) if isinstance(piece, str) else piece for piece in content))

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
    images = _images_below(folder)
    if not images:
        raise UserError(f"captions:{folder}: the folder holds neither {METADATA} nor images with .txt files beside")
    texts = [image.with_suffix(".txt") for image in images]
    missing = next((text for text in texts if not text.is_file()), None)
    if missing is not None:
        raise UserError(f"captions:{folder}: {missing} is missing; each image needs its caption, or write {METADATA}")

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
    return [_image(row, one, column, config) for one in values]


def _image(row: Row, value: Any, column: str, config: ImageConfig) -> Image:
    return read_image(row.image(value, column), config, f"{row.where}: {column!r}")


def _conversation(row: Row, column: str, config: ImageConfig) -> Document:
    """Messages that take turns: a system's at most first, then a user's and an assistant's, again and again."""
    messages = row.value(column)
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{row.where}: {column!r} is no list of messages; each has a role and a content")
    pictures = iter(row.values.get("images") or ())
    said = [_message(row, message, f"{column}[{i}]", config, pictures) for i, message in enumerate(messages)]
    instruction = None
    if said[0][0] == "system":
        instruction = _only_text(row, said.pop(0)[1], f"{column}[0] of the system")
    roles = [role for role, _ in said]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(
            f"{row.where}: {column!r} has the roles {', '.join(roles) or 'of none'}, expected a user's and an "
            "assistant's message in turn, the last of them the assistant's; a system's may be the first"
        )
    turns = [
        (asks, _only_text(row, answers, f"an answer in {column!r}"))
        for (_, asks), (_, answers) in zip(said[::2], said[1::2], strict=True)
    ]
    return conversation(turns, instruction)


def _message(
    row: Row, message: Any, where: str, config: ImageConfig, pictures: Iterator[Any]
) -> tuple[str, list[Image | str]]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UserError(f"{row.where}: {where} is no message; it has a 'role' and a 'content'")
    if message["role"] not in ROLES:
        raise UserError(f"{row.where}: {where}: {nearest(str(message['role']), ROLES, 'role')}")
    return message["role"], _content(row, message["content"], f"{where}.content", config, pictures)


def _content(row: Row, content: Any, where: str, config: ImageConfig, pictures: Iterator[Any]) -> list[Image | str]:
    """A text, or a list of texts and images; images without a name are the next of the row's `images`."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise UserError(f"{row.where}: {where} is neither a text nor a list of texts and images")
    return [_piece(row, piece, f"{where}[{i}]", config, pictures) for i, piece in enumerate(content)]


def _piece(row: Row, piece: Any, where: str, config: ImageConfig, pictures: Iterator[Any]) -> Image | str:
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "text" and isinstance(piece.get("text"), str) and piece["text"]:
        return str(piece["text"])
    if kind == "image":
        value = next((piece[key] for key in ("path", "image") if piece.get(key) is not None), None)
        value = next(pictures, None) if value is None else value
        return _image(row, value, f"{where}.path", config)
    raise UserError(
        f'{row.where}: {where} is neither {{"type": "text", "text": ...}} with a text nor '
        '{"type": "image", "path": ...}'
    )


def _only_text(row: Row, content: Sequence[Image | str], where: str) -> str:
    if not all(isinstance(piece, str) for piece in content):
        raise UserError(f"{row.where}: {where} has an image, allowed are texts; only users show images")
    return "".join(str(piece) for piece in content)
