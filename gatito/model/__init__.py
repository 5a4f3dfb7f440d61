"""The model: a decoder-only transformer that is a native transformers model."""

from gatito.model.configuration import GatitoConfig
from gatito.model.modeling import GatitoForCausalLM, GatitoModel, GatitoOutput
from gatito.model.processor import GatitoProcessor
from gatito.model.tokenizer import GatitoTokenizer

__all__ = ["GatitoConfig", "GatitoForCausalLM", "GatitoModel", "GatitoOutput", "GatitoProcessor", "GatitoTokenizer"]
