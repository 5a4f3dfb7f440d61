"""Text to ids by a SentencePiece model: by default the 32 000 pieces that `mistral-common` ships."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from gatito.errors import UserError


class TextTokenizer:
    """A SentencePiece model, kept with its bytes so that data and checkpoints carry it along."""

    def __init__(self, model: bytes) -> None:
        """Load from the bytes of a `.model` file; raises `UserError` where they are none."""
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError(f"not a SentencePiece model ({len(model)} bytes); give a .model file") from None
        if self.end < 0:
            raise UserError("the SentencePiece model has no end-of-sequence piece; train it with eos_id >= 0")

    @classmethod
    def load(cls, path: str | Path | None = None) -> "TextTokenizer":
        """Read a `.model` file; without a path, the default one out of the `mistral-common` package."""
        if path is None:
            try:
                package = files("mistral_common")
            except ImportError:
                raise UserError("the default text model is in mistral-common: pip install mistral-common") from None
            return cls(package.joinpath("data/tokenizer.model.v1").read_bytes())
        try:
            return cls(Path(path).read_bytes())
        except OSError as error:
            raise UserError(f"cannot read the SentencePiece model {path}: {error.strerror}") from None
        except UserError as error:
            raise UserError(f"{path}: {error}") from None

    @property
    def size(self) -> int:
        """Number of pieces."""
        return int(self._processor.get_piece_size())

    @property
    def end(self) -> int:
        """Id of the end-of-sequence piece."""
        return int(self._processor.eos_id())

    @cached_property
    def sha256(self) -> str:
        """Hash of the model file, compared wherever data meets a checkpoint."""
        return hashlib.sha256(self.model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without begin or end."""
        return list(self._processor.encode(text))

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[NDArray[np.int32]]:
        """The ids (N,) of each text, without begin or end; `threads` encode at a time."""
        return [np.array(ids, np.int32) for ids in self._processor.encode(list(texts), num_threads=threads)]

    def decode(self, ids: list[int]) -> str:
        """Undo `encode`; ids of control pieces, such as the end, leave no text."""
        return str(self._processor.decode(ids))

    def piece_id(self, piece: str) -> int:
        """The id of a piece; that of the unknown piece where it is none."""
        return int(self._processor.piece_to_id(piece))

    @property
    def unknown(self) -> int:
        """Id of the piece that stands for what has none."""
        return int(self._processor.unk_id())

    def piece(self, token_id: int) -> str:
        """Return the piece as SentencePiece writes it, for display."""
        return str(self._processor.id_to_piece(token_id))
