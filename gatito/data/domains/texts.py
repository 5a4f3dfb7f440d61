"""Real prose without a download: the language reference that every Python installation carries."""

from pathlib import Path

from gatito.errors import UserError, reason_of

PYTHON_DOCS = "python-docs"


def documents(name: str) -> list[str]:
    """Return the documents of `python-docs`, of a UTF-8 text file, or of the `.txt` and `.md` files in a folder."""
    if name == PYTHON_DOCS:
        from pydoc_data.topics import topics

        return [topics[key] for key in sorted(topics)]
    path = Path(name)
    files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"text:{name}: the folder holds no .txt or .md files")
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"text:{name}: cannot read {file} as UTF-8 text ({reason_of(error)})") from None
    return texts
