"""Messages of a conversation, as transformers' chat templates have them, and what they are of a document.

    {"role": "system", "content": "Be short."}                       at most one, the first
    {"role": "user", "content": [{"type": "image", ...}, {"type": "text", "text": "What is it?"}]}
    {"role": "assistant", "content": "A cat."}                       these two in turn

One reading for what is learned and for who asks; how a turn then reads is said in `documents.asked`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatito.errors import UserError, nearest
from gatito.tokenizers.documents import Document, Part, Words, asked, conversation

ROLES = ("system", "user", "assistant")
PICTURE_KEYS = ("path", "image", "url")
"""Of which one says which image a piece is."""

Image = NDArray[np.uint8]
Read = Callable[[Any, str], Image]
"""From what stands for an image, and where, to its pixels (H, W, C)."""


@dataclass(frozen=True, kw_only=True)
class Messages:
    """A conversation that is well-formed: what the users say and what is answered, in turn."""

    instruction: str | None
    """What the system says."""
    asked: tuple[Sequence[Image | str], ...]
    """Texts and images of each user's message."""
    answered: tuple[str, ...]
    """As many, or one less."""

    def document(self) -> Document:
        """All of it, to be learned; there is an answer to every question."""
        return conversation(list(zip(self.asked, self.answered, strict=True)), self.instruction)

    def prompt(self, *, goes_on: bool = False) -> tuple[Part, ...]:
        """What is said to the model up to where it answers; `goes_on` lets it go on with the last answer."""
        if goes_on:
            return self.document().parts
        turns = list(zip(self.asked, self.answered, strict=False))
        return (*conversation(turns, self.instruction).parts, *asked(self.asked[-1]))


def read_messages(messages: Any, where: str, read: Read, pictures: Iterator[Any]) -> Messages:
    """Read messages; an image that is not named is the next of `pictures`.

    Raises `UserError`, beginning with `where`, for what are none, or do not take turns.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise UserError(f"{where} is no list of messages; each has a role and a content")
    said = [_message(message, f"{where}[{i}]", read, pictures) for i, message in enumerate(messages)]
    instruction = None
    if said[0][0] == "system":
        instruction = _only_text(said.pop(0)[1], f"{where}[0], of the system,")
    roles = [role for role, _ in said]
    if not roles or roles != (["user", "assistant"] * len(roles))[: len(roles)]:
        raise UserError(
            f"{where} has the roles {', '.join(roles) or 'of none'}, expected a user's and an assistant's message in "
            "turn; a system's may be the first"
        )
    return Messages(
        instruction=instruction,
        asked=tuple(content for _, content in said[::2]),
        answered=tuple(_only_text(content, f"{where}, an answer,") for _, content in said[1::2]),
    )


def read_content(content: Any, where: str, read: Read, pictures: Iterator[Any]) -> list[Image | str]:
    """A text, or a list of texts and images; raises `UserError` for what is neither."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | tuple) or not content:
        raise UserError(f"{where} is neither a text nor a list of texts and images")
    return [_piece(piece, f"{where}[{i}]", read, pictures) for i, piece in enumerate(content)]


def interleaved(content: Sequence[Image | str]) -> Document:
    """Texts and images in their order, of which all texts are learned."""
    return Document(tuple(Words(text=piece) if isinstance(piece, str) else piece for piece in content))


def _message(message: Any, where: str, read: Read, pictures: Iterator[Any]) -> tuple[str, list[Image | str]]:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise UserError(f"{where} is no message; it has a 'role' and a 'content'")
    if message["role"] not in ROLES:
        raise UserError(f"{where}: {nearest(str(message['role']), ROLES, 'role')}")
    return message["role"], read_content(message["content"], f"{where}.content", read, pictures)


def _piece(piece: Any, where: str, read: Read, pictures: Iterator[Any]) -> Image | str:
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "text" and isinstance(piece.get("text"), str) and piece["text"]:
        return str(piece["text"])
    if kind == "image":
        value = next((piece[key] for key in PICTURE_KEYS if piece.get(key) is not None), None)
        return read(next(pictures, None) if value is None else value, f"{where}.path")
    raise UserError(
        f'{where} is neither {{"type": "text", "text": ...}} with a text nor {{"type": "image", "path": ...}}'
    )


def _only_text(content: Sequence[Image | str], where: str) -> str:
    if not all(isinstance(piece, str) for piece in content):
        raise UserError(f"{where} has an image, allowed are texts; only users show images")
    return "".join(str(piece) for piece in content)
