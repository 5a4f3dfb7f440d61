"""The text model of a checkpoint as a transformers tokenizer, for what asks for one, such as pipelines of text."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizer

from gatito.tokenizers import TextTokenizer

TOKENIZER_FILE = "tokenizer.model"


class GatitoTokenizer(PreTrainedTokenizer):
    """Gives the ids that `TextTokenizer` gives: no begin, no end, and no piece that text could forge."""

    vocab_files_names = {"vocab_file": TOKENIZER_FILE}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str | TextTokenizer, **kwargs: Any) -> None:
        """Load a `.model` file, or wrap a text model that is loaded."""
        self.text = vocab_file if isinstance(vocab_file, TextTokenizer) else TextTokenizer.load(vocab_file)
        named = {"eos_token": self.text.piece(self.text.end), "pad_token": self.text.piece(self.text.end)}
        super().__init__(**(kwargs | named | {"padding_side": "left"}))

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self.text.size

    def get_vocab(self) -> dict[str, int]:
        """Piece to id."""
        return {self.text.piece(i): i for i in range(self.text.size)}

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:  # type: ignore[override]
        """Pieces of a text; one that reads like a control piece is spelled out."""
        return [self.text.piece(i) for i in self.text.encode(text)]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of pieces."""
        return self.text.decode([self._convert_token_to_id(token) for token in tokens])

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids as they are."""
        return token_ids_0 + (token_ids_1 or [])

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the `.model` file."""
        file = Path(save_directory) / (f"{filename_prefix}-{TOKENIZER_FILE}" if filename_prefix else TOKENIZER_FILE)
        file.write_bytes(self.text.model)
        return (str(file),)

    def _convert_token_to_id(self, token: str) -> int:
        return self.text.piece_id(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.text.piece(index)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Control pieces, and ids that are no text, leave no text."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.text.decode([int(i) for i in ids if 0 <= int(i) < self.text.size])
