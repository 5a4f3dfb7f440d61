"""Texts: what every Python installation carries, files of yours, and `datasets` datasets.

text:python-docs                         the language reference, a document for each topic
text:python-sources                      the standard library's .py files
text:notes.txt                           one document; also FOLDER, and patterns such as 'corpus/*.parquet'
text:corpus.jsonl#body                   a document for each row: .jsonl, .parquet, .arrow; `text` is the default
text:hf:OWNER/NAME/CONFIG:train#text     the hub, streamed; or a folder
"""

import codecs
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from gatito.data.below import check_below
from gatito.data.document_source import DocumentSource, files_at, identity_of_documents, identity_of_files
from gatito.data.rows import SUFFIXES, Row, columns_of, hub_identity, hub_rows, rows_of
from gatito.errors import UserError, reason_of
from gatito.tokenizers.documents import Document, Words

PYTHON_DOCS, PYTHON_SOURCES = "python-docs", "python-sources"
TEXT_SUFFIXES = (".txt", ".md")
"""Of the files of a folder that are one document each."""
_NOT_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib"}
_MARKS = {"UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)}


def open_texts(location: str) -> DocumentSource:
    """The texts of a location, see above; raises `UserError` where it names nothing.

    Files and rows whose text is empty are passed over.
    """
    if location == PYTHON_DOCS:
        return _in_memory(_python_docs)
    if location == PYTHON_SOURCES:
        return _in_memory(_python_sources)
    place, (column,) = columns_of(location, "text")
    if place.startswith("hf:"):
        name = place.removeprefix("hf:")
        return DocumentSource(
            kind="text",
            rows=lambda: map(_document, _texts_of_rows(hub_rows(name), column)),
            identity=partial(hub_identity, name, column),
        )
    files = _files(place)
    return DocumentSource(
        kind="text",
        rows=lambda: (_document(text) for file in files for text in _texts_of(file, column)),
        identity=lambda: identity_of_files(files, column),
    )


def _in_memory(texts: Callable[[], Iterator[str]]) -> DocumentSource:
    def documents() -> Iterator[Document]:
        return map(_document, texts())

    return DocumentSource(kind="text", rows=documents, identity=lambda: identity_of_documents(documents()))


def _document(text: str) -> Document:
    return Document((Words(text=text),))


def _python_docs() -> Iterator[str]:
    from pydoc_data.topics import topics

    return (topics[key] for key in sorted(topics))


def _python_sources() -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if not _NOT_LIBRARY & set(path.relative_to(root).parts):
            with tokenize.open(path) as file:  # in the encoding that the file states
                text = file.read()
            if text:
                yield text


def _files(place: str) -> Sequence[Path]:
    """The file, the files of a folder, or those that a pattern finds."""
    path = Path(place)
    if path.is_dir():
        files = sorted(check_below(p, path) for p in path.rglob("*") if p.suffix in (*TEXT_SUFFIXES, *SUFFIXES))
        if not files:
            names = ", ".join((*TEXT_SUFFIXES, *SUFFIXES))
            raise UserError(f"text:{place}: the folder holds no files of {names}")
        return files
    return files_at(place)


def _texts_of(file: Path, column: str) -> Iterator[str]:
    if file.suffix in SUFFIXES:
        return _texts_of_rows(rows_of(file), column)
    return filter(None, [whole_text(file)])


def _texts_of_rows(rows: Iterator[Row], column: str) -> Iterator[str]:
    return (text for text in (row.text(column) for row in rows) if text)


def whole_text(file: Path) -> str:
    """A file as text; raises `UserError` where it is not in UTF-8, with the encoding that its first bytes name."""
    try:
        content = file.read_bytes()
        return content.removeprefix(codecs.BOM_UTF8).decode()
    except OSError as error:
        raise UserError(f"cannot read {file} ({reason_of(error)})") from None
    except UnicodeDecodeError as error:
        named = next((name for name, marks in _MARKS.items() if content.startswith(marks)), None)
        found = f"it is {named}" if named else f"byte {content[error.start]:#x} at {error.start}"
        raise UserError(f"cannot read {file} as UTF-8 text ({found}); convert it with iconv") from None
