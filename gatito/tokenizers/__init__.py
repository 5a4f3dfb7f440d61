"""From values to tokens and back: the one place where the order, the ids and the loss mask are said."""

from gatito.tokenizers.documents import pair_tokens, text_tokens
from gatito.tokenizers.layout import Layout
from gatito.tokenizers.sequence import TokenSequence
from gatito.tokenizers.text import TextTokenizer
from gatito.tokenizers.vocabulary import Vocabulary

__all__ = ["Layout", "TextTokenizer", "TokenSequence", "Vocabulary", "pair_tokens", "text_tokens"]
